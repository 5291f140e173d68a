"""Receiving processes: starts them, takes note of what they tell, and replaces one that dies."""

from __future__ import annotations

import logging
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import asdict
from typing import Final

from dicom_gateway.errors import StartError
from dicom_gateway.peers import Rejection
from dicom_gateway.process_channel import Message, ProcessChannel
from dicom_gateway.tally import Tally
from dicom_gateway.telling_counts import TALLY_KIND, take_counts

_log = logging.getLogger(__name__)

_START_SECONDS: Final = 60.0
_PAUSE_BEFORE_RESTART_SECONDS: Final = 1.0
_END_SECONDS: Final = 5.0


class ProcessKeeper:
    """Keeps ``count`` processes of one kind. ``start`` and ``stop`` are called once each.

    ``make`` starts one, or raises ``OSError``; ``what`` names it in the log.
    """

    def __init__(self, make: Callable[[], ReceivingProcess], *, count: int, what: str) -> None:
        self._make = make
        self._count = count
        self._what = what
        self.processes: list[ReceivingProcess] = []
        self.restart_count = 0
        """How many processes were started in place of one that died."""
        self._threads: list[threading.Thread] = []
        self._stopping = threading.Event()
        self._replacing = threading.Lock()

    @property
    def is_alive(self) -> bool:
        """Whether any of them is there to serve."""
        return not self._stopping.is_set() and any(process.is_alive for process in self.processes)

    def start(self) -> None:
        """Start them, and return once all serve. Raises ``StartError``, and then none is left."""
        try:
            for _ in range(self._count):
                self.processes.append(self._make())
            deadline = time.monotonic() + _START_SECONDS
            for process in self.processes:
                process.wait_until_ready(deadline=deadline)
        except (StartError, OSError) as error:
            for process in self.processes:
                process.kill()
            if isinstance(error, OSError):
                raise StartError(f"{self._what} cannot be started: {error.strerror or error}") from error
            raise
        self._threads = [
            threading.Thread(target=self._watch, args=(place,), name=f"receiver-{place}", daemon=True)
            for place in range(self._count)
        ]
        for thread in self._threads:
            thread.start()

    def stop(self, *, grace_seconds: float) -> None:
        """Let what they serve go on for ``grace_seconds``, then end them. What they told is noted when this returns."""
        with self._replacing:
            # From here on no process is started that nobody would tell to stop.
            self._stopping.set()
        for process in self.processes:
            process.tell_to_stop(grace_seconds=grace_seconds)
        deadline = time.monotonic() + grace_seconds + _END_SECONDS
        for process in self.processes:
            process.end(deadline=deadline)
        for thread in self._threads:
            thread.join()

    def _watch(self, place: int) -> None:
        """Take note of what one process tells, and start another when it is gone."""
        while True:
            self.processes[place].take_notes()
            if self._stopping.is_set():
                return
            _log.error("%s died; another one is started", self._what, extra={"action": "restart"})
            if not self._replace(place):
                return

    def _replace(self, place: int) -> bool:
        """Start another process in a place, as soon as the system allows it; return False where all is to stop."""
        while not self._stopping.wait(_PAUSE_BEFORE_RESTART_SECONDS):
            with self._replacing:
                if self._stopping.is_set():
                    return False
                try:
                    self.processes[place] = self._make()
                except OSError as error:
                    _log.error(
                        "%s cannot be started: %s; trying again",
                        self._what,
                        error.strerror or type(error).__name__,
                        extra={"action": "restart"},
                    )
                    continue
                self.restart_count += 1
                return True
        return False


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
