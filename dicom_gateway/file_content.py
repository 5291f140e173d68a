"""A file to look into, however large: no more of it comes into memory than is looked at."""

from __future__ import annotations

import mmap
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

_SMALL_BYTES: Final = 4 * 1024 * 1024
"""Up to here, to read the whole is quicker than to map it."""


@contextmanager
def file_content(
    path: Path | str, *, folder: int | None = None, small_bytes: int = _SMALL_BYTES
) -> Iterator[bytes | mmap.mmap]:
    """Give what a file holds, for as long as the block lasts. ``folder`` is a descriptor that ``path`` is within.
    Up to ``small_bytes`` it is read, and mapped beyond.

    Nobody may shorten the file meanwhile. Raises ``OSError``.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC, dir_fd=folder)
    with os.fdopen(descriptor, "rb") as file:
        if os.fstat(descriptor).st_size <= small_bytes:
            yield file.read()
            return
        with mmap.mmap(descriptor, 0, access=mmap.ACCESS_READ) as mapped:
            yield mapped
