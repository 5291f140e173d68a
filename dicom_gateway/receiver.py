"""Listens, and spreads connections over processes that receive.

One process accepts, several receive, a process a core: Python's threads share one core, and a process that a hostile
object brings down takes its own associations along, and no others.
"""

from __future__ import annotations

import errno
import logging
import socket
import threading
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Final

from dicom_gateway.errors import StartError
from dicom_gateway.listening import listen
from dicom_gateway.peers import NO_ROOM, Rejection
from dicom_gateway.process_channel import ProcessChannel
from dicom_gateway.process_keeper import ProcessKeeper, ReceivingProcess
from dicom_gateway.receiver_settings import ReceiverSettings
from dicom_gateway.tally import Tally
from dicom_gateway.tls import server_context

_log = logging.getLogger(__name__)

_LISTEN_BACKLOG: Final = 512
_NO_DESCRIPTORS_PAUSE_SECONDS: Final = 0.1
_MOST_REJECTED: Final = 32
"""How many connections may be open only to be told that they are too many."""


class Receiver:
    """The storage SCP. ``start`` and ``stop`` are called once each.

    ``on_opened`` is called with the id of a reception before anything comes into it, ``on_ended`` once nothing more
    will, with whether its sender said that it was complete; from several threads. What its processes count is added to
    ``tally``.
    """

    def __init__(
        self,
        settings: ReceiverSettings,
        *,
        on_ended: Callable[[str, bool], None],
        on_opened: Callable[[str], None] = lambda _: None,
        tally: Tally | None = None,
    ) -> None:
        self._settings = settings
        self._on_ended = on_ended
        self._on_opened = on_opened
        self._tally = tally or Tally()
        self._listening: list[_Door] = []
        self._keeper = ProcessKeeper(self._new_process, count=settings.processes, what="a receiving process")
        self._threads: list[threading.Thread] = []
        self._stopping = threading.Event()

    @property
    def port(self) -> int:
        """The port that is listened on, also where port 0 left the choice to the system. Only after ``start``."""
        if not self._listening:
            raise StartError("the receiver is not started")
        return self._listening[0].port

    @property
    def tls_port(self) -> int:
        """The port that TLS is spoken on beside ``port``. Only after ``start``, and where there is one."""
        return self._listening[1].port

    @property
    def open_connections(self) -> int:
        """How many connections are served at this moment."""
        return sum(len(process.connections) for process in self._keeper.processes)

    @property
    def restart_count(self) -> int:
        """How many processes were started in place of one that died."""
        return self._keeper.restart_count

    def is_listening(self) -> bool:
        """Tell whether a connection would be accepted, and served."""
        return (
            bool(self._threads)
            and not self._stopping.is_set()
            and self._threads[0].is_alive()
            and self._keeper.is_alive
        )

    def start(self) -> None:
        """Begin to listen. Raises ``StartError`` where an address cannot be had, or TLS not be spoken."""
        settings = self._settings
        if settings.tls is not None:
            server_context(settings.tls)
        self._listening = _doors(settings)
        try:
            self._keeper.start()
        except StartError:
            for door in self._listening:
                door.socket.close()
            raise
        self._threads = [
            threading.Thread(target=self._accept, args=(door,), name="receiver", daemon=True)
            for door in self._listening
        ]
        for thread in self._threads:
            thread.start()
        _log.info(
            "listening as %s on %s:%d; processes: %d",
            settings.ae_title,
            settings.hostname or "*",
            self.port,
            settings.processes,
            extra={"action": "listen"},
        )

    def stop(self, *, grace_seconds: float) -> None:
        """Take no more associations, let open ones go on for ``grace_seconds``, then end all there are."""
        if not self._threads:
            return
        self._stopping.set()
        for door in self._listening:
            # Also wakes the thread that waits in accept.
            with suppress(OSError):
                door.socket.shutdown(socket.SHUT_RDWR)
            door.socket.close()
        self._keeper.stop(grace_seconds=grace_seconds)
        for thread in self._threads:
            thread.join()

    def _accept(self, door: _Door) -> None:
        while not self._stopping.is_set():
            try:
                connection, address = door.socket.accept()
            except OSError as error:
                if error.errno in (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM):
                    _log.error("a connection cannot be accepted: %s", error.strerror, extra={"action": "accept"})
                    self._stopping.wait(_NO_DESCRIPTORS_PAUSE_SECONDS)
                continue
            with connection:
                self._hand_over(connection, address=str(address[0]), is_secure=door.is_secure)

    def _hand_over(self, connection: socket.socket, *, address: str, is_secure: bool) -> None:
        rejection = self._rejection(address)
        if rejection is not None and sum(len(process.rejected) for process in self._keeper.processes) >= _MOST_REJECTED:
            return  # so many strangers at once are dropped, not answered
        for process in sorted(self._keeper.processes, key=lambda process: len(process.connections)):
            if process.serve(connection, address=address, is_secure=is_secure, rejection=rejection):
                return

    def _rejection(self, address: str) -> Rejection | None:
        addresses = [one for process in self._keeper.processes for one in list(process.connections.values())]
        if self._settings.room is not None and not self._settings.room.is_left():
            return NO_ROOM
        return self._settings.limits.rejection(addresses=addresses, address=address)

    def _new_process(self) -> ReceivingProcess:
        return ReceivingProcess(
            "dicom_gateway.receiving_process",
            introduce=self._introduce,
            lock=self._settings.lock,
            on_ended=self._on_ended,
            on_opened=self._on_opened,
            tally=self._tally,
        )

    def _introduce(self, channel: ProcessChannel) -> None:
        channel.send("settings", **self._settings.model_dump(mode="json"))


@dataclass(frozen=True, kw_only=True)
class _Door:
    """A port that is listened on."""

    socket: socket.socket
    is_secure: bool

    @property
    def port(self) -> int:
        return int(self.socket.getsockname()[1])


def _doors(settings: ReceiverSettings) -> list[_Door]:
    is_secure = settings.tls is not None and settings.tls_port is None
    first = _Door(socket=_listen(settings.hostname, settings.port, setting="AE_PORT"), is_secure=is_secure)
    if settings.tls_port is None:
        return [first]
    try:
        return [first, _Door(socket=_listen(settings.hostname, settings.tls_port, setting="TLS_PORT"), is_secure=True)]
    except StartError:
        first.socket.close()
        raise


def _listen(hostname: str, port: int, *, setting: str) -> socket.socket:
    return listen(hostname, port, hostname_setting="AE_HOSTNAME", port_setting=setting, backlog=_LISTEN_BACKLOG)
