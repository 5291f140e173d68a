"""Keeps the process that receives over HTTP, and takes note of what it receives.

A process of its own: neither the load nor the death of a web server that strangers reach is the gateway's. The port is
the gateway's, and stays open while the process is replaced.
"""

from __future__ import annotations

import logging
import socket
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Final

from pydantic import TypeAdapter

from dicom_gateway.disk_room import DiskRoom
from dicom_gateway.errors import StartError
from dicom_gateway.listening import listen
from dicom_gateway.peers import AssociationLimits, PeerRules
from dicom_gateway.process_channel import ProcessChannel
from dicom_gateway.process_keeper import ProcessKeeper, ReceivingProcess
from dicom_gateway.reception import Durability
from dicom_gateway.spool import OnConflict
from dicom_gateway.stow_credentials import StowCredentials
from dicom_gateway.tally import Tally

_log = logging.getLogger(__name__)

_LIMITS: Final = AssociationLimits(in_all=200, of_one_peer=200)


@dataclass(frozen=True, kw_only=True)
class StowSettings:
    """How to receive over HTTP."""

    hostname: str
    port: int
    ae_title: str
    spool: Path
    credentials: StowCredentials
    durability: Durability = "instance"
    on_conflict: OnConflict = "keep_both"
    room: DiskRoom | None = None
    peers: PeerRules = field(default_factory=PeerRules)
    """Only what they say of addresses: over HTTP, nobody has an AE title."""
    limits: AssociationLimits = _LIMITS
    log_level: int = logging.INFO
    lock: int | None = None
    """A descriptor that the process inherits: whoever it locks out waits until it is gone."""


class StowReceiver:
    """The STOW-RS origin server. ``start`` and ``stop`` are called once each.

    ``on_ended`` is called as the ``Receiver`` does; a body that came whole is an association that was released.
    """

    def __init__(
        self,
        settings: StowSettings,
        *,
        on_ended: Callable[[str, bool], None],
        on_opened: Callable[[str], None],
        tally: Tally,
    ) -> None:
        self._on_opened = on_opened
        self._settings = settings
        self._on_ended = on_ended
        self._tally = tally
        self._listening: socket.socket | None = None
        self._keeper = ProcessKeeper(self._new_process, count=1, what="the process that receives over HTTP")

    @property
    def port(self) -> int:
        """The port that is listened on. Only after ``start``."""
        if self._listening is None:
            raise StartError("nothing is received over HTTP yet")
        return int(self._listening.getsockname()[1])

    @property
    def restart_count(self) -> int:
        """How many processes were started in place of one that died."""
        return self._keeper.restart_count

    def is_listening(self) -> bool:
        """Tell whether a request would be served."""
        return self._keeper.is_alive

    def start(self) -> None:
        """Begin to listen. Raises ``StartError``."""
        settings = self._settings
        self._listening = listen(
            settings.hostname, settings.port, hostname_setting="STOW_HOSTNAME", port_setting="STOW_PORT"
        )
        try:
            self._keeper.start()
        except StartError:
            self._listening.close()
            raise
        _log.info(
            "studies are taken over HTTP on %s:%d%s",
            settings.hostname or "*",
            self.port,
            ", from whoever reaches it" if settings.credentials.is_anonymous else "",
            extra={"action": "listen"},
        )

    def stop(self, *, grace_seconds: float) -> None:
        """Take no more requests, let open ones go on for ``grace_seconds``, then end all there are."""
        if self._listening is None:
            return
        self._keeper.stop(grace_seconds=grace_seconds)
        self._listening.close()

    def _new_process(self) -> ReceivingProcess:
        return ReceivingProcess(
            "dicom_gateway.stow_process",
            introduce=self._introduce,
            lock=self._settings.lock,
            on_ended=self._on_ended,
            on_opened=self._on_opened,
            tally=self._tally,
        )

    def _introduce(self, channel: ProcessChannel) -> None:
        assert self._listening is not None
        settings = self._settings
        # Over the channel: arguments can be read by every user of the host.
        channel.send(
            "settings",
            descriptor=self._listening.fileno(),
            ae_title=settings.ae_title,
            spool=str(settings.spool),
            durability=settings.durability,
            on_conflict=settings.on_conflict,
            room=None if settings.room is None else {**asdict(settings.room), "folder": str(settings.room.folder)},
            peers=TypeAdapter(PeerRules).dump_python(settings.peers, mode="json"),
            limits=asdict(settings.limits),
            log_level=settings.log_level,
            credentials=asdict(settings.credentials),
        )
