"""Which GPU of this host a step holds. The kernel frees it when the process ends, however it ends."""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from flows_engine.errors import GpuUnavailableError

_POLL_SECONDS: Final = 0.2


@contextmanager
def lease(gpus: Sequence[str], *, folder: Path, wait_seconds: float) -> Iterator[str]:
    """Hold one of ``gpus`` for the length of the ``with`` block, and yield its id.

    A lease is a lock on ``folder/gpu-<id>.lock``: processes that share ``folder`` on one host never hold the same GPU,
    and a killed process leaves none behind. ``wait_seconds`` is how long to wait where all are taken.

    Raises ``GpuUnavailableError`` where ``gpus`` is empty, or none became free in time.
    """
    if not gpus:
        raise GpuUnavailableError(
            "the model needs a GPU and this worker has none: set GPUS to the ids it may use, for example GPUS='0 1'"
        )
    folder.mkdir(parents=True, exist_ok=True)
    deadline = time.monotonic() + wait_seconds
    while (held := _try_each(gpus, folder)) is None:
        if time.monotonic() >= deadline:
            raise GpuUnavailableError(
                f"no GPU of {', '.join(gpus)} became free within {wait_seconds:g} seconds: other steps hold them"
            )
        time.sleep(_POLL_SECONDS)
    gpu, descriptor = held
    try:
        yield gpu
    finally:
        os.close(descriptor)


def _try_each(gpus: Sequence[str], folder: Path) -> tuple[str, int] | None:
    for gpu in gpus:
        name = "".join(c if c.isalnum() or c in "-_" else "_" for c in gpu)
        descriptor = os.open(folder / f"gpu-{name}.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(descriptor)
        except BaseException:
            os.close(descriptor)
            raise
        else:
            return gpu, descriptor
    return None
