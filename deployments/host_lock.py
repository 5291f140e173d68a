"""One ``dicomflow up`` a DATA_DIR: two would start two databases on the same files."""

from __future__ import annotations

import fcntl
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from deployments.errors import StartupError


@contextmanager
def host_lock(data_dir: Path) -> Iterator[None]:
    """Hold DATA_DIR for as long as the context lasts. Raises ``StartupError`` where another ``up`` holds it."""
    with (data_dir / "up.lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise StartupError(
                f"DATA_DIR: another `dicomflow up` is using {data_dir}; stop it, or give this one its own DATA_DIR"
            ) from None
        yield
