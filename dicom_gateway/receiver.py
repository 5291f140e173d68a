"""Listens, and spreads connections over processes that receive; takes note of what they receive, also when they die.

One process accepts, several receive, a process a core: Python's threads share one core, and a process that a hostile
object brings down takes its own associations along, and no others.
"""

from __future__ import annotations

import errno
import logging
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass
from typing import Final

from dicom_gateway.errors import StartError
from dicom_gateway.listening import listen
from dicom_gateway.peers import NO_ROOM, Rejection
from dicom_gateway.process_channel import Message, ProcessChannel
from dicom_gateway.receiver_settings import ReceiverSettings
from dicom_gateway.tally import Tally
from dicom_gateway.telling_counts import TALLY_KIND, take_counts
from dicom_gateway.tls import server_context

_log = logging.getLogger(__name__)

_LISTEN_BACKLOG: Final = 512
_START_SECONDS: Final = 60.0
_PAUSE_BEFORE_RESTART_SECONDS: Final = 1.0
_NO_DESCRIPTORS_PAUSE_SECONDS: Final = 0.1
_END_SECONDS: Final = 5.0
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
        self.restart_count = 0
        """How many processes were started in place of one that died."""
        self._listening: list[_Door] = []
        self._processes: list[ReceivingProcess] = []
        self._threads: list[threading.Thread] = []
        self._stopping = threading.Event()
        self._replacing = threading.Lock()

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
        return sum(len(process.connections) for process in self._processes)

    def is_listening(self) -> bool:
        """Tell whether a connection would be accepted, and served."""
        return (
            bool(self._threads)
            and not self._stopping.is_set()
            and self._threads[0].is_alive()
            and any(process.is_alive for process in self._processes)
        )

    def start(self) -> None:
        """Begin to listen. Raises ``StartError`` where an address cannot be had, or TLS not be spoken."""
        settings = self._settings
        if settings.tls is not None:
            server_context(settings.tls)
        self._listening = _doors(settings)
        try:
            for _ in range(settings.processes):
                self._processes.append(self._new_process())
            deadline = time.monotonic() + _START_SECONDS
            for process in self._processes:
                process.wait_until_ready(deadline=deadline)
        except (StartError, OSError) as error:
            for door in self._listening:
                door.socket.close()
            for process in self._processes:
                process.kill()
            if isinstance(error, OSError):
                raise StartError(f"the receiving processes cannot be started: {error.strerror or error}") from error
            raise
        self._threads = [
            threading.Thread(target=self._accept, args=(door,), name="receiver", daemon=True)
            for door in self._listening
        ]
        self._threads += [
            threading.Thread(target=self._watch, args=(place,), name=f"receiver-{place}", daemon=True)
            for place in range(settings.processes)
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
        with self._replacing:
            # From here on no process is started that nobody would tell to stop.
            self._stopping.set()
        for door in self._listening:
            # Also wakes the thread that waits in accept.
            with suppress(OSError):
                door.socket.shutdown(socket.SHUT_RDWR)
            door.socket.close()
        for process in self._processes:
            process.tell_to_stop(grace_seconds=grace_seconds)
        deadline = time.monotonic() + grace_seconds + _END_SECONDS
        for process in self._processes:
            process.end(deadline=deadline)
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
        if rejection is not None and sum(len(process.rejected) for process in self._processes) >= _MOST_REJECTED:
            return  # so many strangers at once are dropped, not answered
        for process in sorted(self._processes, key=lambda process: len(process.connections)):
            if process.serve(connection, address=address, is_secure=is_secure, rejection=rejection):
                return

    def _rejection(self, address: str) -> Rejection | None:
        addresses = [one for process in self._processes for one in list(process.connections.values())]
        if self._settings.room is not None and not self._settings.room.is_left():
            return NO_ROOM
        return self._settings.limits.rejection(addresses=addresses, address=address)

    def _watch(self, place: int) -> None:
        """Take note of what one process tells, and start another when it is gone."""
        while True:
            self._processes[place].take_notes()
            if self._stopping.is_set():
                return
            _log.error("a receiving process died; another one is started", extra={"action": "restart"})
            if not self._replace(place):
                return

    def _replace(self, place: int) -> bool:
        """Start another process in a place, as soon as the system allows it; return False where all is to stop."""
        while not self._stopping.wait(_PAUSE_BEFORE_RESTART_SECONDS):
            with self._replacing:
                if self._stopping.is_set():
                    return False
                try:
                    self._processes[place] = self._new_process()
                except OSError as error:
                    _log.error(
                        "a receiving process cannot be started: %s; trying again",
                        error.strerror or type(error).__name__,
                        extra={"action": "restart"},
                    )
                    continue
                self.restart_count += 1
                return True
        return False

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


class ReceivingProcess:
    """A receiving process, and what is known of it. ``introduce`` sends it its settings."""

    def __init__(
        self,
        module: str,
        *,
        introduce: Callable[[ProcessChannel], None],
        lock: int | None,
        on_ended: Callable[[str, bool], None],
        on_opened: Callable[[str], None],
        tally: Tally,
    ) -> None:
        self._on_ended = on_ended
        self._on_opened = on_opened
        self._tally = tally
        self._receptions: set[str] = set()
        self._numbers = 0
        self._lock = threading.Lock()
        self.connections: dict[int, str] = {}
        """The address of each peer that is served, by the number of its connection."""
        self.rejected: set[int] = set()
        """The numbers of connections that are open to be rejected."""
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            self._process = subprocess.Popen(  # noqa: S603  # our own module
                [sys.executable, "-m", module, str(theirs.fileno())],
                pass_fds=[theirs.fileno(), *([] if lock is None else [lock])],
                stdin=subprocess.DEVNULL,
                env=_environment(),
            )
        self._channel = ProcessChannel(ours)
        introduce(self._channel)

    @property
    def pid(self) -> int:
        """The process's number."""
        return self._process.pid

    @property
    def is_alive(self) -> bool:
        """Whether it runs."""
        return self._process.poll() is None

    def wait_until_ready(self, *, deadline: float) -> None:
        """Wait until it serves. Raises ``StartError`` where it does not."""
        killer = threading.Timer(max(0.0, deadline - time.monotonic()), self.kill)
        killer.start()
        try:
            while True:
                message = self._channel.receive()
                if message is None:
                    raise StartError("a receiving process did not start; what it said is above")
                if message.kind == "ready":
                    return
                self._note(message)
        finally:
            killer.cancel()

    def serve(self, connection: socket.socket, *, address: str, is_secure: bool, rejection: Rejection | None) -> bool:
        """Hand over a connection, to be rejected or not; return whether the process is there to take it."""
        with self._lock:
            self._numbers += 1
            number = self._numbers
            if rejection is None:
                self.connections[number] = address
            else:
                self.rejected.add(number)
        taken = self._channel.send(
            "serve",
            descriptor=connection.fileno(),
            number=number,
            is_secure=is_secure,
            rejection=None if rejection is None else asdict(rejection),
        )
        if not taken:
            self._forget(number)
        return taken

    def take_notes(self) -> None:
        """Take note of what the process tells, until it is gone, and then of what it left."""
        while (message := self._channel.receive()) is not None:
            self._note(message)
        self._process.wait()
        with self._lock:
            self.connections.clear()
            self.rejected.clear()
        for reception in sorted(self._receptions):
            self._on_ended(reception, False)
        self._receptions.clear()
        self._channel.close()

    def tell_to_stop(self, *, grace_seconds: float) -> None:
        """Have it end by itself."""
        self._channel.send("stop", grace_seconds=grace_seconds)

    def end(self, *, deadline: float) -> None:
        """See that it has ended."""
        try:
            self._process.wait(timeout=max(0.0, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            self.kill()

    def kill(self) -> None:
        """End it at once."""
        self._process.kill()
        self._process.wait()

    def _forget(self, number: int) -> None:
        with self._lock:
            self.connections.pop(number, None)
            self.rejected.discard(number)

    def _note(self, message: Message) -> None:
        values = message.values
        if message.kind == "opened":
            self._receptions.add(values["reception"])
            self._on_opened(values["reception"])
        elif message.kind == "ended":
            self._receptions.discard(values["reception"])
            self._on_ended(values["reception"], bool(values["complete"]))
        elif message.kind == "closed":
            self._forget(values["number"])
        elif message.kind == TALLY_KIND:
            take_counts(values, self._tally)
        elif message.kind == "log":
            logger = logging.getLogger(values["name"])
            if logger.isEnabledFor(values["level"]):
                logger.log(values["level"], "%s", values["text"], extra=values["extra"])


def _environment() -> dict[str, str]:
    """Return this process's environment, in which the other one finds the same packages."""
    return {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}


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
