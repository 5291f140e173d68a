"""The one place where the gateway's parts are put together."""

from __future__ import annotations

import logging
import sqlite3
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from dicom_gateway.commitment_folder import CommitmentFolder
from dicom_gateway.commitment_reports import CommitmentReports
from dicom_gateway.committed_instances import CommittedInstances
from dicom_gateway.completeness import Waiting
from dicom_gateway.data_dir_lock import DataDirLock
from dicom_gateway.disk_room import DiskRoom
from dicom_gateway.durable_files import PRIVATE_FOLDER, keeps_modes, spread_folders
from dicom_gateway.errors import StartError
from dicom_gateway.instance_filling import InstanceFilling
from dicom_gateway.intake import Intake
from dicom_gateway.interfaces import Definitions, RunTrigger
from dicom_gateway.ledger import Ledger
from dicom_gateway.metrics import GatewayMetrics
from dicom_gateway.open_groups import OpenGroups
from dicom_gateway.outbox import Outbox
from dicom_gateway.peers import AssociationLimits, PeerRules, parse_peer_rule
from dicom_gateway.readiness import Readiness
from dicom_gateway.receiver import Receiver
from dicom_gateway.receiver_settings import ReceiverSettings
from dicom_gateway.seeing_door import SeeingDoor
from dicom_gateway.spool import Spool
from dicom_gateway.stow_credentials import StowCredentials
from dicom_gateway.stow_receiver import StowReceiver, StowSettings
from dicom_gateway.tally import Tally
from dicom_gateway.tls import TlsFiles
from dicom_gateway.uid_filling import UidFilling
from dicom_gateway.uid_key import make_uid_key
from flows_engine.handoff.layout import Layout
from flows_engine.handoff.site_settings import SiteSettings
from flows_engine.handoff.study_store import StudyStore

_log = logging.getLogger(__name__)

LEDGER_NAME: Final = "ledger.sqlite"
_GRACE_SECONDS: Final = 5.0
_THIS_HOST: Final = ("localhost", "127.0.0.1")


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
        instance_filling: InstanceFilling,
        commitment_reports: CommitmentReports,
        seeing_door: SeeingDoor | None,
        stow: StowReceiver | None,
    ) -> None:
        self._lock = lock
        self._receiver = receiver
        self._intake = intake
        self._uid_filling = uid_filling
        self._instance_filling = instance_filling
        self._commitment_reports = commitment_reports
        self._seeing_door = seeing_door
        self._stow = stow
        self.ledger = ledger

    @property
    def port(self) -> int:
        """The port that is listened on. Only after ``start``."""
        return self._receiver.port

    @property
    def tls_port(self) -> int:
        """The second port, that TLS is spoken on. Only after ``start``, and where there is one."""
        return self._receiver.tls_port

    @property
    def metrics_port(self) -> int | None:
        """The port of ``/healthz``, ``/readyz`` and ``/metrics``, None where they are off. Only after ``start``."""
        return None if self._seeing_door is None else self._seeing_door.port

    @property
    def stow_port(self) -> int | None:
        """The port on which studies are taken over HTTP, None where they are not. Only after ``start``."""
        return None if self._stow is None else self._stow.port

    def start(self) -> None:
        """Carry on with what an earlier gateway left, then listen. Raises ``StartError``, and then nothing runs."""
        try:
            # First: to carry on may take a while, and whoever asks hears meanwhile that nothing is received yet.
            if self._seeing_door is not None:
                self._seeing_door.start()
            self._intake.start()
            self._receiver.start()
            if self._stow is not None:
                self._stow.start()
        except StartError:
            self._receiver.stop(grace_seconds=0)
            self._close()
            raise
        self._uid_filling.start()
        self._instance_filling.start()
        self._commitment_reports.start()

    def stop(self, *, grace_seconds: float = _GRACE_SECONDS) -> None:
        """Take no more associations, let open ones end or end them, commit what they sent, and stop."""
        if self._stow is not None:
            self._stow.stop(grace_seconds=grace_seconds)
        self._receiver.stop(grace_seconds=grace_seconds)
        self._close()

    def _close(self) -> None:
        self._commitment_reports.stop()
        self._intake.stop()
        self._uid_filling.stop()
        self._instance_filling.stop()
        if self._seeing_door is not None:
            self._seeing_door.stop()
        self.ledger.close()
        self._lock.release()


def build_gateway(settings: SiteSettings, trigger: RunTrigger, catalogue: Definitions) -> Gateway:
    """Return a gateway that has DATA_DIR to itself. Raises ``StartError`` with what to change."""
    data_dir = settings.data_dir
    layout = Layout(settings.tar_subdir)
    peers, tls = _peer_rules(settings), _tls_files(settings)
    credentials = _stow_credentials(settings)
    spool_root, store_root, commitments = _make_folders(data_dir)
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

    def on_ended(reception_id: str, complete: bool) -> None:  # as receivers call it
        intake.finish(reception_id, complete=complete)

    room = DiskRoom(
        folder=spool_root,
        reserve_bytes=settings.disk_reserve_bytes,
        watermark_percent=settings.disk_watermark_percent,
    )
    limits = AssociationLimits(in_all=settings.max_associations, of_one_peer=settings.max_associations_per_peer)
    tallies = {"dicom": Tally(), "stow": Tally()}
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
            room=room,
            peers=peers,
            limits=limits,
            processes=settings.receiver_processes,
            log_level=settings.log_level,
            pynetdicom_log_level=settings.pynetdicom_log_level,
            is_fast=settings.c_store_path == "fast",
            commitments=commitments,
            ledger=data_dir / LEDGER_NAME,
            lock=lock.descriptor,
        ),
        on_opened=intake.opened,
        on_ended=on_ended,
        tally=tallies["dicom"],
    )
    stow = None
    if settings.stow_port is not None:
        if settings.stow_hostname in _THIS_HOST and not peers.admits_address("127.0.0.1"):
            _log.warning(
                "nobody may send over HTTP: STOW_HOSTNAME is reached from this host only, and ALLOWED_PEERS does not"
                " name it; add 127.0.0.1",
                extra={"action": "listen"},
            )
        stow = StowReceiver(
            StowSettings(
                hostname=settings.stow_hostname,
                port=settings.stow_port,
                ae_title=settings.ae_title,
                spool=spool_root,
                credentials=credentials,
                durability=settings.durability,
                on_conflict=settings.on_conflict,
                room=room,
                peers=peers,
                limits=limits,
                log_level=settings.log_level,
                lock=lock.descriptor,
            ),
            on_opened=intake.opened,
            on_ended=on_ended,
            tally=tallies["stow"],
        )
    uid_filling = UidFilling(ledger=ledger, store=store, uid_key=uid_key)
    return Gateway(
        lock=lock,
        receiver=receiver,
        intake=intake,
        ledger=ledger,
        uid_filling=uid_filling,
        instance_filling=InstanceFilling(ledger=ledger, store=store, uid_key=uid_key),
        commitment_reports=CommitmentReports(
            CommitmentFolder(commitments),
            CommittedInstances(data_dir, ledger=data_dir / LEDGER_NAME, durability=settings.durability),
            ae_title=settings.ae_title,
            peers=settings.commitment_peers,
        ),
        seeing_door=_seeing_door(settings, receiver=receiver, stow=stow, tallies=tallies),
        stow=stow,
    )


def _stow_credentials(settings: SiteSettings) -> StowCredentials:
    """Return who may send over HTTP. Raises ``StartError`` where that would be nobody, or everybody by mistake."""
    token, password = settings.stow_token, settings.stow_password
    if (settings.stow_user is None) != (password is None):
        raise StartError("STOW_USER, STOW_PASSWORD: one is set without the other; set both, or neither")
    if settings.stow_port is not None and not (token or password or settings.stow_anonymous):
        raise StartError(
            "STOW_PORT: nobody may send there; set STOW_TOKEN, or STOW_USER and STOW_PASSWORD, or STOW_ANONYMOUS: true"
        )
    return StowCredentials(
        token=token.get_secret_value() if token else None,
        user=settings.stow_user,
        password=password.get_secret_value() if password else None,
        is_anonymous=settings.stow_anonymous,
    )


def _seeing_door(
    settings: SiteSettings, *, receiver: Receiver, stow: StowReceiver | None, tallies: Mapping[str, Tally]
) -> SeeingDoor | None:
    if settings.metrics_port is None:
        return None
    doors: dict[str, Receiver | StowReceiver] = {"AE_PORT": receiver}
    if stow is not None:
        doors["STOW_PORT"] = stow
    ledger, spool = settings.data_dir / LEDGER_NAME, settings.data_dir / "spool"
    return SeeingDoor(
        hostname=settings.metrics_hostname,
        port=settings.metrics_port,
        reasons_against=Readiness(
            doors={setting: door.is_listening for setting, door in doors.items()}, spool=spool, ledger=ledger
        ).reasons_against,
        metrics=GatewayMetrics(
            tallies=tallies,
            open_connections=lambda: receiver.open_connections,
            restart_count=lambda: sum(door.restart_count for door in doors.values()),
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


def _make_folders(data_dir: Path) -> tuple[Path, Path, Path]:
    folders = (data_dir / "spool", data_dir / "studies", data_dir / "commitments")
    try:
        data_dir.mkdir(parents=True, exist_ok=True)
        for folder in folders:
            folder.mkdir(mode=PRIVATE_FOLDER, exist_ok=True)
        spread_folders(folders[0])
        if not keeps_modes(folders[0]):
            raise StartError(
                f"DATA_DIR: the file system of {data_dir} does not keep the modes of files, by which whole instances"
                " are told from half ones; use a local one, such as ext4 or XFS"
            )
    except OSError as error:
        raise StartError(f"DATA_DIR: {data_dir} cannot be used: {error.strerror}") from error
    return folders
