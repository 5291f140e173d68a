"""A file on disk -> its header, whatever its size."""

from __future__ import annotations

from mmap import ACCESS_READ, mmap
from pathlib import Path

from flows_engine.handoff.header import Header, UnreadableError, read_file_header


def read_file_header_at(path: Path) -> Header:
    """Return what can be searched in a file that the gateway wrote (PS3.10 7.1).

    The file is mapped, not read: an object of gigabytes takes no more memory than a small one. It must not become
    shorter meanwhile. Raises ``UnreadableError`` for an empty or truncated file, ``OSError`` where it cannot be opened.
    """
    with path.open("rb") as file:
        try:
            mapped = mmap(file.fileno(), 0, access=ACCESS_READ)
        except ValueError:
            raise UnreadableError("the file is empty") from None
        with mapped:
            return read_file_header(mapped)
