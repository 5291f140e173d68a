"""The one place where the gateway's parts are put together."""

from __future__ import annotations

import logging
import sqlite3
from pathlib import Path
from typing import Final

from dicom_gateway.completeness import Waiting
from dicom_gateway.data_dir_lock import DataDirLock
from dicom_gateway.disk_room import DiskRoom
from dicom_gateway.durable_files import PRIVATE_FOLDER
from dicom_gateway.errors import StartError
from dicom_gateway.intake import Intake
from dicom_gateway.interfaces import Definitions, RunTrigger
from dicom_gateway.ledger import Ledger
from dicom_gateway.open_groups import OpenGroups
from dicom_gateway.outbox import Outbox
from dicom_gateway.peers import AssociationLimits, PeerRules, parse_peer_rule
from dicom_gateway.receiver import Receiver
from dicom_gateway.receiver_settings import ReceiverSettings
from dicom_gateway.spool import Spool
from dicom_gateway.tls import TlsFiles
from dicom_gateway.uid_filling import UidFilling
from dicom_gateway.uid_key import make_uid_key
from flows_engine.handoff.layout import Layout
from flows_engine.handoff.site_settings import SiteSettings
from flows_engine.handoff.study_store import StudyStore

_log = logging.getLogger(__name__)

LEDGER_NAME: Final = "ledger.sqlite"
_GRACE_SECONDS: Final = 5.0


class Gateway:
    """A gateway that can be started and stopped once each."""

    def __init__(
        self, *, lock: DataDirLock, receiver: Receiver, intake: Intake, ledger: Ledger, uid_filling: UidFilling
    ) -> None:
        self._lock = lock
        self._receiver = receiver
        self._intake = intake
        self._uid_filling = uid_filling
        self.ledger = ledger

    @property
    def port(self) -> int:
        """The port that is listened on. Only after ``start``."""
        return self._receiver.port

    @property
    def tls_port(self) -> int:
        """The second port, that TLS is spoken on. Only after ``start``, and where there is one."""
        return self._receiver.tls_port

    def start(self) -> None:
        """Carry on with what an earlier gateway left, then listen. Raises ``StartError``, and then nothing runs."""
        self._intake.start()
        try:
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
        self.ledger.close()
        self._lock.release()


def build_gateway(settings: SiteSettings, trigger: RunTrigger, catalogue: Definitions) -> Gateway:
    """Return a gateway that has DATA_DIR to itself. Raises ``StartError`` with what to change."""
    data_dir = settings.data_dir
    layout = Layout(settings.tar_subdir)
    peers, tls = _peer_rules(settings), _tls_files(settings)
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
    spool = Spool(spool_root, layout=layout, durability=settings.durability, on_conflict=settings.on_conflict)
    intake = Intake(
        spool=spool,
        store=store,
        ledger=ledger,
        outbox=outbox,
        definitions=catalogue,
        uid_key=uid_key,
        hold_incomplete=settings.incomplete == "hold",
        groups=OpenGroups(
            spool,
            group_by=settings.group_by,
            waiting=Waiting(idle_seconds=settings.study_idle_seconds, incomplete_seconds=settings.incomplete_seconds),
        ),
        late_arrival=None if settings.group_by == "association" else settings.late_arrival,
    )
    receiver = Receiver(
        ReceiverSettings(
            ae_title=settings.ae_title,
            hostname=settings.ae_hostname,
            port=settings.ae_port,
            tls_port=settings.tls_port,
            tls=tls,
            spool=spool_root,
            durability=settings.durability,
            on_conflict=settings.on_conflict,
            room=DiskRoom(
                folder=spool_root,
                reserve_bytes=settings.disk_reserve_bytes,
                watermark_percent=settings.disk_watermark_percent,
            ),
            peers=peers,
            limits=AssociationLimits(in_all=settings.max_associations, of_one_peer=settings.max_associations_per_peer),
            processes=settings.receiver_processes,
            log_level=settings.log_level,
            pynetdicom_log_level=settings.pynetdicom_log_level,
            is_fast=settings.c_store_path == "fast",
            lock=lock.descriptor,
        ),
        on_opened=intake.opened,
        on_ended=lambda reception_id, complete: intake.finish(reception_id, complete=complete),
    )
    uid_filling = UidFilling(ledger=ledger, store=store, uid_key=uid_key)
    return Gateway(lock=lock, receiver=receiver, intake=intake, ledger=ledger, uid_filling=uid_filling)


def open_ledger(data_dir: Path) -> Ledger:
    """Return the ledger of a DATA_DIR; a gateway may have it open at the same time. Raises ``StartError``."""
    path = data_dir / LEDGER_NAME
    try:
        return Ledger(path)
    except sqlite3.Error as error:
        raise StartError(f"DATA_DIR: {path} cannot be opened as the ledger: {error}") from error


def _peer_rules(settings: SiteSettings) -> PeerRules:
    try:
        allowed = tuple(map(parse_peer_rule, settings.allowed_peers))
    except ValueError as error:
        raise StartError(f"ALLOWED_PEERS: {error}") from error
    if not allowed:
        _log.warning("ALLOWED_PEERS is not set: everyone who reaches the port may send", extra={"action": "listen"})
    return PeerRules(allowed=allowed, called_ae_title=settings.ae_title if settings.require_called_ae else "")


def _tls_files(settings: SiteSettings) -> TlsFiles | None:
    if settings.tls_cert is None and settings.tls_key is None:
        if settings.tls_port is not None:
            raise StartError("TLS_PORT: TLS needs a certificate; set TLS_CERT and TLS_KEY, or take TLS_PORT out")
        return None
    if settings.tls_cert is None or settings.tls_key is None:
        raise StartError("TLS_CERT: TLS_CERT and TLS_KEY belong together; set both, or neither")
    if settings.tls_ca is None and settings.tls_client_certificate != "none":
        raise StartError(
            "TLS_CA: without it no certificate of a peer can be trusted; name the file of your authority, or set"
            " TLS_CLIENT_CERTIFICATE: none"
        )
    return TlsFiles(
        certificate=settings.tls_cert,
        key=settings.tls_key,
        authorities=settings.tls_ca,
        client_certificate=settings.tls_client_certificate,
    )


def _make_folders(data_dir: Path) -> tuple[Path, Path]:
    spool_root, store_root = data_dir / "spool", data_dir / "studies"
    try:
        data_dir.mkdir(parents=True, exist_ok=True)
        for folder in (spool_root, store_root):
            folder.mkdir(mode=PRIVATE_FOLDER, exist_ok=True)
    except OSError as error:
        raise StartError(f"DATA_DIR: {data_dir} cannot be used: {error.strerror}") from error
    return spool_root, store_root
