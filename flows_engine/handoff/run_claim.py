"""Which flow runs have a living process on this host: a lock that the kernel frees when the process dies."""

from __future__ import annotations

import fcntl
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

_LOCK_NAME: Final = "claim"


class RunClaimedError(RuntimeError):
    """Another process of this host is executing the run."""


@contextmanager
def claim(run_folder: Path) -> Iterator[None]:
    """Hold a run for as long as the context lasts, and not longer than this process lives.

    Raises ``RunClaimedError`` where another process of this host holds it: two would write into the same folders.
    """
    run_folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    with (run_folder / _LOCK_NAME).open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise RunClaimedError("another process of this host is executing this run") from None
        yield


def began_here(run_folder: Path) -> bool:
    """Tell whether some process of this host, alive or not, ever claimed the run."""
    return (run_folder / _LOCK_NAME).exists()


def is_claimed(run_folder: Path) -> bool:
    """Tell whether a living process of this host holds the run."""
    try:
        with (run_folder / _LOCK_NAME).open() as lock:
            fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except FileNotFoundError:
        return False
    except BlockingIOError:
        return True
    return False
