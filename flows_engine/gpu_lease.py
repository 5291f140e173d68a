"""Which GPUs of this host a step holds. The kernel frees them when the process ends, however it ends.

A step that waits for GPUs or holds some has one file below a folder that all processes of the host share. The file is
locked (flock) for as long as it means something: one that is not locked was left by a process that died, and counts
for nothing. What the files say is read and changed under one more lock, for the moment that this takes.
"""

from __future__ import annotations

import fcntl
import os
import re
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from pydantic import BaseModel, ConfigDict

from flows_engine.errors import GpuUnavailableError, RunHaltedError
from flows_engine.gpu_choice import Amount, Need, choose

_POLL_SECONDS: Final = 0.2
_MUTEX_POLL_SECONDS: Final = 0.005
_MUTEX_SECONDS: Final = 60.0
_MUTEX: Final = "mutex"
_NAME: Final = re.compile("[0-9a-f]{32}")


@dataclass(frozen=True, kw_only=True)
class Lease:
    """The GPUs that a step holds, by their ids. ``name`` is that of no other lease."""

    name: str
    gpus: tuple[str, ...]


class _Entry(BaseModel):
    """What a file says: since when, in the order of arrival, a step waits for ``need``, or what it ``holds``."""

    model_config = ConfigDict(frozen=True)

    arrival: int
    need: Need
    holds: dict[str, Amount] | None = None

    def holding(self, holds: dict[str, Amount] | None) -> _Entry:
        return self.model_copy(update={"holds": holds})


@contextmanager
def lease(
    need: Need,
    *,
    folder: Path,
    wait_seconds: float,
    on_wait: Callable[[], None],
    is_halted: Callable[[], bool] = lambda: False,
) -> Iterator[Lease]:
    """Hold the GPUs of ``need``, all of them at once, for the length of the ``with`` block.

    Processes and threads of one host that share ``folder`` never hold more of a GPU than it has, and a killed process
    leaves nothing behind. Who came first is served first, except by what he cannot use. ``on_wait`` is called once if
    the GPUs are not free; ``wait_seconds`` is how long to wait for them.

    Raises ``GpuUnavailableError`` where they did not become free in time, and ``RunHaltedError`` where ``is_halted``
    began to hold before.
    """
    folder.mkdir(parents=True, exist_ok=True)
    deadline = time.monotonic() + wait_seconds
    path = folder / uuid.uuid4().hex
    with ExitStack() as undo:
        with _mutex(folder):
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
            undo.callback(os.close, descriptor)
            undo.callback(path.unlink, missing_ok=True)
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            last = max((entry.arrival for entry in _others(folder, path.name)), default=0)
            entry = _Entry(arrival=last + 1, need=need)
            holds = _choose(entry, folder, path.name)
            _write(entry.holding(holds), descriptor)
        if holds is None:
            on_wait()
        while holds is None:
            if is_halted():
                raise RunHaltedError
            if time.monotonic() >= deadline:
                raise GpuUnavailableError(
                    f"{need} did not become free within {wait_seconds:g} seconds: other steps hold what is missing"
                )
            time.sleep(_POLL_SECONDS)
            with _mutex(folder):
                holds = _choose(entry, folder, path.name)
                if holds is not None:
                    _write(entry.holding(holds), descriptor)
        yield Lease(name=path.name, gpus=tuple(holds))


def is_held(name: str, *, folder: Path) -> bool:
    """Tell whether the lease of this name is held: its process lives, and has not ended it."""
    return _NAME.fullmatch(name) is not None and _read_if_live(folder / name) is not None


def _choose(entry: _Entry, folder: Path, name: str) -> dict[str, Amount] | None:
    """Return what a step gets beside the others, or None where it waits. Called under the mutex."""
    others = list(_others(folder, name))
    held: dict[str, list[Amount]] = {}
    for other in others:
        for gpu, amount in (other.holds or {}).items():
            held.setdefault(gpu, []).append(amount)
    waiting = sorted((other for other in others if other.holds is None), key=lambda other: other.arrival)
    earlier = [other.need for other in waiting if other.arrival < entry.arrival]
    return choose(entry.need, held=held, earlier=earlier)


def _write(entry: _Entry, descriptor: int) -> None:
    content = entry.model_dump_json().encode()
    # In this order it takes no space that a full disk may not have.
    os.ftruncate(descriptor, os.pwrite(descriptor, content, 0))


def _others(folder: Path, own_name: str) -> Iterator[_Entry]:
    """Yield what the files of living processes say, and remove those of dead ones. Called under the mutex."""
    for path in folder.iterdir():
        if path.name == own_name or not _NAME.fullmatch(path.name):
            continue
        said = _read_if_live(path)
        if said is None:
            path.unlink(missing_ok=True)
        else:
            yield _Entry.model_validate_json(said)


def _read_if_live(path: Path) -> bytes | None:
    """Return what a file says, or None where no living process has it locked."""
    try:
        file = path.open("rb")
    except FileNotFoundError:
        return None
    with file:
        try:
            # Shared, so that two who look at a file do not take each other for its owner.
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return file.read()
    return None


@contextmanager
def _mutex(folder: Path) -> Iterator[None]:
    deadline = time.monotonic() + _MUTEX_SECONDS
    descriptor = os.open(folder / _MUTEX, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        while True:
            with suppress(BlockingIOError):
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            if time.monotonic() >= deadline:
                raise GpuUnavailableError(
                    f"a process has kept {folder / _MUTEX} locked for {_MUTEX_SECONDS:g} seconds: end it"
                )
            time.sleep(_MUTEX_POLL_SECONDS)
        yield
    finally:
        os.close(descriptor)
