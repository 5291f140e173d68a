"""Keeps the process that receives over HTTP, and takes note of what it receives.

A process of its own: neither the load nor the death of a web server that strangers reach is the gateway's. The port is
the gateway's, and stays open while the process is replaced.
"""

from __future__ import annotations

import logging
import socket
import threading
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final

from dicom_gateway.disk_room import DiskRoom
from dicom_gateway.errors import StartError
from dicom_gateway.listening import listen
from dicom_gateway.process_channel import ProcessChannel
from dicom_gateway.receiver import ReceivingProcess
from dicom_gateway.reception import Durability
from dicom_gateway.spool import OnConflict
from dicom_gateway.stow_credentials import StowCredentials
from dicom_gateway.tally import Tally

_log = logging.getLogger(__name__)

_START_SECONDS: Final = 60.0
_PAUSE_BEFORE_RESTART_SECONDS: Final = 1.0
_END_SECONDS: Final = 5.0


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
        self._process: ReceivingProcess | None = None
        self._stopping = threading.Event()
        self._replacing = threading.Lock()
        self._thread = threading.Thread(target=self._watch, name="stow", daemon=True)
        self.restart_count = 0
        """How many processes were started in place of one that died."""

    @property
    def port(self) -> int:
        """The port that is listened on. Only after ``start``."""
        if self._listening is None:
            raise StartError("nothing is received over HTTP yet")
        return int(self._listening.getsockname()[1])

    def is_listening(self) -> bool:
        """Tell whether a request would be served."""
        return self._process is not None and self._process.is_alive and not self._stopping.is_set()

    def start(self) -> None:
        """Begin to listen. Raises ``StartError``."""
        settings = self._settings
        self._listening = listen(
            settings.hostname, settings.port, hostname_setting="STOW_HOSTNAME", port_setting="STOW_PORT"
        )
        try:
            self._process = self._new_process()
            self._process.wait_until_ready(deadline=time.monotonic() + _START_SECONDS)
        except StartError:
            self._listening.close()
            if self._process is not None:
                self._process.kill()
            raise
        self._thread.start()
        _log.info(
            "studies are taken over HTTP on %s:%d%s",
            settings.hostname or "*",
            self.port,
            ", from whoever reaches it" if settings.credentials.is_anonymous else "",
            extra={"action": "listen"},
        )

    def stop(self, *, grace_seconds: float) -> None:
        """Take no more requests, let open ones go on for ``grace_seconds``, then end all there are."""
        if self._listening is None or self._process is None or self._thread.ident is None:
            return
        with self._replacing:
            self._stopping.set()
        self._process.tell_to_stop(grace_seconds=grace_seconds)
        self._process.end(deadline=time.monotonic() + grace_seconds + _END_SECONDS)
        self._thread.join()
        self._listening.close()

    def _watch(self) -> None:
        while self._process is not None:
            self._process.take_notes()
            if self._stopping.is_set():
                return
            _log.error("the process that receives over HTTP died; another one is started", extra={"action": "restart"})
            if not self._replace():
                return

    def _replace(self) -> bool:
        while not self._stopping.wait(_PAUSE_BEFORE_RESTART_SECONDS):
            with self._replacing:
                if self._stopping.is_set():
                    return False
                try:
                    self._process = self._new_process()
                except OSError as error:
                    _log.error(
                        "the process that receives over HTTP cannot be started: %s; trying again",
                        error.strerror or type(error).__name__,
                        extra={"action": "restart"},
                    )
                    continue
                self.restart_count += 1
                return True
        return False

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
            log_level=settings.log_level,
            credentials=asdict(settings.credentials),
        )
