"""One gateway a DATA_DIR: two would each take the other's open associations for the leavings of a killed one."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path

from dicom_gateway.errors import StartError


class DataDirLock:
    """Held from ``acquire`` to ``release``, or until the process ends, however it ends."""

    def __init__(self, data_dir: Path) -> None:
        self._path = data_dir / "gateway.lock"
        self._descriptor: int | None = None

    def acquire(self) -> None:
        """Raise ``StartError`` where another gateway has it."""
        descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(descriptor)
            raise StartError(
                f"DATA_DIR: another gateway is using {self._path.parent}; stop it, or give this one its own DATA_DIR"
            ) from None
        self._descriptor = descriptor

    def release(self) -> None:
        """Let another gateway have it."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None
