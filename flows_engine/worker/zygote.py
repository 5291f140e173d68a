"""Forks processes that have nothing to import any more: ``python -m flows_engine.worker.zygote FD PROGRAM``.

``PROGRAM`` is a module. It is imported here, once, and its ``main()`` is what every forked process does. ``FD`` is a
socket on which each message asks for one process, and brings three files: the channel of that process, its standard
output and its standard error. Only who holds the other end can ask, and when that is closed, the zygote ends.

On its channel, a process says its number, and is then told, in one line of JSON, the ``environment`` and the ``folder``
that it is to have. The zygote adds how it ended. Both keep the channel for as long as they live, so its end says that
neither does.
"""

from __future__ import annotations

import atexit
import contextlib
import gc
import importlib
import json
import os
import select
import signal
import socket
import sys
import time
from pathlib import Path
from typing import Final, NamedTuple, NoReturn

_CHUNK_BYTES: Final = 4096
_NAME: Final = Path("/proc/self/comm")


class _Files(NamedTuple):
    channel: socket.socket
    stdout: int
    stderr: int


class _Zygote:
    """The loop that forks. It knows the channels of the processes that have not ended."""

    def __init__(self, control: socket.socket) -> None:
        self._control = control
        self._channels: dict[int, socket.socket] = {}
        self._woken, self._wakes = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        signal.set_wakeup_fd(self._wakes, warn_on_full_buffer=False)
        signal.signal(signal.SIGCHLD, lambda *_: None)  # one that is ignored wakes nobody
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C in a terminal is for the worker to act upon

    def serve(self) -> _Files | None:
        """Return in each new process, with its files; and in the zygote, with nothing, when nobody can ask any more."""
        poll = select.poll()
        poll.register(self._control, select.POLLIN)
        poll.register(self._woken, select.POLLIN)
        while True:
            ready = [file for file, _ in poll.poll()]
            if self._woken in ready:
                os.read(self._woken, _CHUNK_BYTES)
                self._tell_who_ended()
            if self._control.fileno() in ready:
                asked, files, _, _ = socket.recv_fds(self._control, 1, 3, socket.MSG_CMSG_CLOEXEC)
                if not asked:
                    return None
                wanted = _Files(socket.socket(fileno=files[0]), *files[1:])
                if self._is_born(wanted):
                    return wanted

    def _is_born(self, files: _Files) -> bool:
        """Fork, and return whether this is the new process. Where there is none, its channel ends."""
        pid = _fork()
        if pid == 0:
            self._leave()
            return True
        if pid is None:
            files.channel.close()
        else:
            self._channels[pid] = files.channel
        os.close(files.stdout)
        os.close(files.stderr)
        return False

    def _leave(self) -> None:
        """Let go, in a new process, of what is the zygote's: above all of the channels of others."""
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        for other in (self._control, *self._channels.values()):
            other.close()
        os.close(self._woken)
        os.close(self._wakes)

    def _tell_who_ended(self) -> None:
        for pid, channel in list(self._channels.items()):
            ended, status = os.waitpid(pid, os.WNOHANG)
            if ended:
                del self._channels[pid]
                with channel, contextlib.suppress(OSError):  # nobody may want to know any more
                    channel.sendall(b"%d\n" % os.waitstatus_to_exitcode(status))


def _fork() -> int | None:
    # A lock that another thread holds at this moment would be locked for ever in the new process.
    others = len(list(Path("/proc/self/task").iterdir())) - 1
    if others:
        print(f"zygote: does not fork, since what it has imported runs {others} more threads", file=sys.stderr)
        return None
    try:
        return os.fork()
    except OSError as error:
        print(f"zygote: cannot fork: {error.strerror}", file=sys.stderr)
        return None


def _become_what_is_told(files: _Files) -> None:
    """Take the place of a program that was started in the folder and with the environment that the channel tells."""
    files.channel.sendall(b"%d\n" % os.getpid())
    with files.channel.makefile("rb") as lines:
        told = lines.readline()
    if not told:
        sys.exit()  # whoever asked is gone, and does not know of this process
    request = json.loads(told)
    for place, file in enumerate((os.open(os.devnull, os.O_RDONLY), files.stdout, files.stderr)):
        os.dup2(file, place)
        os.close(file)
    files.channel.detach()  # open until the end, and never used again
    os.environ.clear()
    os.environ.update(request["environment"])
    time.tzset()
    os.chdir(request["folder"])
    if "numpy.random" in sys.modules:
        sys.modules["numpy.random"].seed()  # unlike Python's own generator, this one does not notice a fork


class _QuickEnd:
    """Spares a process the clearing of its memory, which takes 0.1 s where so much was imported before the fork."""

    def __init__(self) -> None:
        self.status: int | None = None
        # What is registered first is called last: all threads are joined then, and all else is done.
        atexit.register(self._end)

    def _end(self) -> None:
        if self.status is None:
            return
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(OSError, ValueError):
                stream.flush()
        os._exit(self.status)


def _run(program: str, end: _QuickEnd) -> NoReturn:
    del sys.argv[1:]
    try:
        importlib.import_module(program).main()
    except SystemExit as ended:
        if ended.code is None or isinstance(ended.code, int):
            end.status = (ended.code or 0) & 0xFF
        raise  # a text is printed by Python
    end.status = 0
    sys.exit()


def main() -> None:
    """Be a zygote; and, in each process that it forks, the program."""
    end = _QuickEnd()
    control, program = socket.socket(fileno=int(sys.argv[1])), sys.argv[2]
    importlib.import_module(program)
    _NAME.write_text("flow-run-zygote")
    gc.collect()
    gc.freeze()  # or the first collection in a new process would write to, and so copy, all that it inherited
    files = _Zygote(control).serve()
    if files is not None:
        _NAME.write_text("flow-run")
        _become_what_is_told(files)
        _run(program, end)


if __name__ == "__main__":
    main()
