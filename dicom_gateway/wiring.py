"""The one place where the gateway's parts are put together."""

from __future__ import annotations

import sqlite3
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from dicom_gateway.data_dir_lock import DataDirLock
from dicom_gateway.durable_files import PRIVATE_FOLDER
from dicom_gateway.errors import StartError
from dicom_gateway.intake import Intake
from dicom_gateway.interfaces import Definitions, RunTrigger
from dicom_gateway.layout import Layout
from dicom_gateway.ledger import Ledger
from dicom_gateway.metrics import GatewayMetrics
from dicom_gateway.outbox import Outbox
from dicom_gateway.readiness import Readiness
from dicom_gateway.receiver import Receiver, ReceiverSettings
from dicom_gateway.seeing_door import SeeingDoor
from dicom_gateway.spool import Spool
from dicom_gateway.tally import Tally
from dicom_gateway.uid_filling import UidFilling
from dicom_gateway.uid_key import make_uid_key
from flows_engine.handoff.site_settings import SiteSettings
from flows_engine.handoff.study_store import StudyStore

LEDGER_NAME: Final = "ledger.sqlite"
_GRACE_SECONDS: Final = 5.0


class Gateway:
    """A gateway that can be started and stopped once each."""

    def __init__(
        self,
        *,
        lock: DataDirLock,
        receiver: Receiver,
        intake: Intake,
        ledger: Ledger,
        uid_filling: UidFilling,
        seeing_door: SeeingDoor | None,
    ) -> None:
        self._lock = lock
        self._receiver = receiver
        self._intake = intake
        self._uid_filling = uid_filling
        self._seeing_door = seeing_door
        self.ledger = ledger

    @property
    def port(self) -> int:
        """The port that is listened on. Only after ``start``."""
        return self._receiver.port

    @property
    def metrics_port(self) -> int | None:
        """The port of ``/healthz``, ``/readyz`` and ``/metrics``, None where they are off. Only after ``start``."""
        return None if self._seeing_door is None else self._seeing_door.port

    def start(self) -> None:
        """Carry on with what an earlier gateway left, then listen. Raises ``StartError``, and then nothing runs."""
        try:
            # First: to carry on may take a while, and whoever asks hears meanwhile that nothing is received yet.
            if self._seeing_door is not None:
                self._seeing_door.start()
            self._intake.start()
            self._receiver.start()
        except StartError:
            self._close()
            raise
        self._uid_filling.start()

    def stop(self, *, grace_seconds: float = _GRACE_SECONDS) -> None:
        """Take no more associations, let open ones end or end them, commit what they sent, and stop."""
        self._receiver.stop(grace_seconds=grace_seconds)
        self._close()

    def _close(self) -> None:
        self._intake.stop()
        self._uid_filling.stop()
        if self._seeing_door is not None:
            self._seeing_door.stop()
        self.ledger.close()
        self._lock.release()


def build_gateway(settings: SiteSettings, trigger: RunTrigger, catalogue: Definitions) -> Gateway:
    """Return a gateway that has DATA_DIR to itself. Raises ``StartError`` with what to change."""
    data_dir = settings.data_dir
    layout = Layout(settings.tar_subdir)
    spool_root, store_root = _make_folders(data_dir)
    lock = DataDirLock(data_dir)
    lock.acquire()
    try:
        uid_key = make_uid_key(data_dir)
        ledger = open_ledger(data_dir)
    except StartError:
        lock.release()
        raise
    ledger.use_uid_key(uid_key.check_value)
    outbox = Outbox(ledger, trigger, catalogue)
    store = StudyStore(store_root)
    intake = Intake(
        spool=Spool(spool_root, layout=layout, durability=settings.durability),
        store=store,
        ledger=ledger,
        outbox=outbox,
        definitions=catalogue,
        uid_key=uid_key,
        hold_incomplete=settings.incomplete == "hold",
    )
    tally = Tally()
    receiver = Receiver(
        ReceiverSettings(
            ae_title=settings.ae_title,
            hostname=settings.ae_hostname,
            port=settings.ae_port,
            spool=spool_root,
            durability=settings.durability,
            processes=settings.receiver_processes,
            log_level=settings.log_level,
            pynetdicom_log_level=settings.pynetdicom_log_level,
            is_fast=settings.c_store_path == "fast",
            lock=lock.descriptor,
        ),
        on_ended=lambda reception_id, complete: intake.finish(reception_id, complete=complete),
        tally=tally,
    )
    uid_filling = UidFilling(ledger=ledger, store=store, uid_key=uid_key)
    return Gateway(
        lock=lock,
        receiver=receiver,
        intake=intake,
        ledger=ledger,
        uid_filling=uid_filling,
        seeing_door=_seeing_door(settings, receiver=receiver, tallies={"dicom": tally}),
    )


def _seeing_door(settings: SiteSettings, *, receiver: Receiver, tallies: Mapping[str, Tally]) -> SeeingDoor | None:
    if settings.metrics_port is None:
        return None
    ledger, spool = settings.data_dir / LEDGER_NAME, settings.data_dir / "spool"
    return SeeingDoor(
        hostname=settings.metrics_hostname,
        port=settings.metrics_port,
        reasons_against=Readiness(
            is_listening=lambda: receiver.is_listening, spool=spool, ledger=ledger
        ).reasons_against,
        metrics=GatewayMetrics(
            tallies=tallies,
            open_connections=lambda: receiver.open_connections,
            restart_count=lambda: receiver.restart_count,
            ledger=ledger,
            data_dir=settings.data_dir,
        ),
    )


def open_ledger(data_dir: Path) -> Ledger:
    """Return the ledger of a DATA_DIR; a gateway may have it open at the same time. Raises ``StartError``."""
    path = data_dir / LEDGER_NAME
    try:
        return Ledger(path)
    except sqlite3.Error as error:
        raise StartError(f"DATA_DIR: {path} cannot be opened as the ledger: {error}") from error


def _make_folders(data_dir: Path) -> tuple[Path, Path]:
    spool_root, store_root = data_dir / "spool", data_dir / "studies"
    try:
        data_dir.mkdir(parents=True, exist_ok=True)
        for folder in (spool_root, store_root):
            folder.mkdir(mode=PRIVATE_FOLDER, exist_ok=True)
    except OSError as error:
        raise StartError(f"DATA_DIR: {data_dir} cannot be used: {error.strerror}") from error
    return spool_root, store_root
