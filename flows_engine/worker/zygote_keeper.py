"""Keeps a zygote running, and has processes forked from it. The worker's side of ``zygote.py``."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Final

# What it imports takes seconds, on a busy host many; a process that is asked for meanwhile waits.
_PATIENCE_SECONDS: Final = 60.0
# numpy would start threads when it is imported.
_ONE_THREAD: Final = {"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
# A folder that is there on every host, and holds no settings of anybody.
_NEUTRAL_FOLDER: Final = "/proc"


class NotForkedError(Exception):
    """No process was forked, and none will be: whoever asked may start one in another way."""


class ForkedProcess:
    """A process that a zygote forked. It goes on when whoever asked for it ends, like any child."""

    def __init__(self, pid: int, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.pid = pid
        self.returncode: int | None = None
        self._reader = reader
        self._writer = writer

    async def wait(self) -> int:
        """Return the exit status of the process once it is over, or the negative number of the signal that ended it.

        Of one that outlives its zygote nobody can tell; it counts as killed.
        """
        if self.returncode is None:
            told = await _line(self._reader)
            self.returncode = int(told) if told else -signal.SIGKILL
            self._writer.close()
        return self.returncode

    def terminate(self) -> None:
        """Ask the process to end, if it has not."""
        if self.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, signal.SIGTERM)


class ZygoteKeeper:
    """One zygote of a program, started in ``environment``, and started again when it is needed and gone.

    A zygote ends with whoever keeps it; the processes that were forked from it go on.
    """

    def __init__(self, program: str, *, environment: Mapping[str, str]) -> None:
        self.environment = dict(environment)
        self._program = program
        self._process: subprocess.Popen[bytes] | None = None
        self._control: socket.socket | None = None

    @property
    def pid(self) -> int | None:
        """The process number of the zygote, if one was started."""
        return self._process.pid if self._process is not None else None

    def start(self) -> None:
        """Start a zygote, unless one is running. It is ready some seconds later; who asks earlier waits."""
        self._started()

    def _started(self) -> socket.socket:
        """Return the socket on which a zygote is asked, after starting one where none is running."""
        if self._control is not None and self._process is not None and self._process.poll() is None:
            return self._control
        self.stop()
        self._control, theirs = socket.socketpair()
        # -P: nothing is imported from the folder that it happens to stand in.
        command = [sys.executable, "-P", "-m", "flows_engine.worker.zygote", str(theirs.fileno()), self._program]
        with theirs:
            self._process = subprocess.Popen(  # noqa: S603
                command,
                cwd=_NEUTRAL_FOLDER,
                env={**self.environment, **_ONE_THREAD},
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
            )
        return self._control

    def stop(self) -> None:
        """End the zygote, and wait until it is gone. May be called twice."""
        if self._control is not None:
            self._control.close()
        if self._process is not None:
            self._process.kill()  # it has nothing to finish, and may be in the middle of its imports
            self._process.wait()

    async def fork(self, *, environment: Mapping[str, str], folder: Path, stdout: int, stderr: int) -> ForkedProcess:
        """Return a new process of the program, with this environment, folder and output. Raises ``NotForkedError``."""
        ours, theirs = socket.socketpair()
        # A process that was forked, and that nobody is to know of, ends when its channel does.
        with contextlib.ExitStack() as undo:
            undo.callback(ours.close)
            try:
                with theirs:
                    socket.send_fds(self._started(), [b"1"], [theirs.fileno(), stdout, stderr])
            except OSError as error:
                raise NotForkedError(f"the zygote cannot be asked: {error.strerror}") from error
            reader, writer = await asyncio.open_unix_connection(sock=ours)
            undo.callback(writer.close)
            number = await self._first_line(reader)
            if not number:
                raise NotForkedError("the zygote did not fork; if it had a reason, it is above")
            undo.pop_all()
        writer.write(json.dumps({"environment": dict(environment), "folder": str(folder)}).encode() + b"\n")
        return ForkedProcess(int(number), reader, writer)

    async def _first_line(self, reader: asyncio.StreamReader) -> bytes:
        try:
            async with asyncio.timeout(_PATIENCE_SECONDS):
                return await _line(reader)
        except TimeoutError:
            self.stop()  # dead, it forks none; one that it has forked at this moment says so
            return await _line(reader)


async def _line(reader: asyncio.StreamReader) -> bytes:
    """Return the next line, or nothing where the other end is closed: by the zygote and by the process."""
    try:
        return await reader.readline()
    except ConnectionError:
        return b""
