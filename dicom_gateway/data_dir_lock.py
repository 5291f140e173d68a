"""One gateway a DATA_DIR: two would each take the other's open associations for the leavings of a killed one."""

from __future__ import annotations

import fcntl
import os
import time
from pathlib import Path
from typing import Final

from dicom_gateway.errors import StartError

_LAST_WORDS_SECONDS: Final = 3.0
_LOOK_SECONDS: Final = 0.02


class DataDirLock:
    """Held from ``acquire`` to ``release``, or until the process ends, however it ends, and those that inherit it."""

    def __init__(self, data_dir: Path) -> None:
        self._path = data_dir / "gateway.lock"
        self._descriptor: int | None = None

    @property
    def descriptor(self) -> int:
        """What a process inherits that uses DATA_DIR as a part of this gateway. Only while it is held."""
        if self._descriptor is None:
            raise ValueError("the lock is not held")
        return self._descriptor

    def acquire(self) -> None:
        """Raise ``StartError`` where another gateway has it.

        A killed gateway's receiving processes hold it for some milliseconds more; so that is waited for.
        """
        descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        deadline = time.monotonic() + _LAST_WORDS_SECONDS
        while not _locked(descriptor):
            if time.monotonic() > deadline:
                os.close(descriptor)
                folder = self._path.parent
                raise StartError(
                    f"DATA_DIR: another gateway is using {folder}; stop it, or give this one its own DATA_DIR"
                )
            time.sleep(_LOOK_SECONDS)
        self._descriptor = descriptor

    def release(self) -> None:
        """Let another gateway have it."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None


def _locked(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
