"""How many models of one run may be executed at a time. The kernel frees a slot when its process ends."""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from flows_engine.errors import RunHaltedError

_POLL_SECONDS: Final = 0.2


@contextmanager
def branch_slot(
    own: Path, *, shared: Path, shared_count: int, is_halted: Callable[[], bool] = lambda: False
) -> Iterator[None]:
    """Hold a slot for one model for the length of the ``with`` block; wait for it as long as it takes.

    Each run has one, the file ``own``, so that it always goes on. Beside it there are ``shared_count`` in the folder
    ``shared``, which all runs of this host share. Raises ``RunHaltedError`` where ``is_halted`` holds first.
    """
    shared.mkdir(parents=True, exist_ok=True)
    slots = [own, *(shared / f"branch-{number}.lock" for number in range(shared_count))]
    while (descriptor := _first_free(slots)) is None:
        if is_halted():
            raise RunHaltedError
        time.sleep(_POLL_SECONDS)
    try:
        yield
    finally:
        os.close(descriptor)


def _first_free(slots: list[Path]) -> int | None:
    for slot in slots:
        # Opened anew each time: a lock belongs to what was opened, so that threads of one process keep each other out.
        descriptor = os.open(slot, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(descriptor)
        else:
            return descriptor
    return None
