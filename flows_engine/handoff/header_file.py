"""A file on disk -> what can be searched in it, whatever its size."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from contextlib import contextmanager
from mmap import ACCESS_READ, mmap
from pathlib import Path

from flows_engine.handoff.deep_values import deep_values
from flows_engine.handoff.header import Header, UnreadableError, read_file_header, read_header, read_meta


def read_file_header_at(path: Path) -> Header:
    """Return what can be searched in a file that the gateway wrote (PS3.10 7.1).

    The file is mapped, not read: an object of gigabytes takes no more memory than a small one. It must not become
    shorter meanwhile. Raises ``UnreadableError`` for an empty or truncated file, ``OSError`` where it cannot be opened.
    """
    with path.open("rb") as file:
        return read_open_file_header(file.fileno())


def read_open_file_header(descriptor: int) -> Header:
    """Return the same of a file that is open for reading. Raises ``UnreadableError``."""
    with _mapped(descriptor) as file:
        return read_file_header(file)


def read_deep_at(path: Path, *, keys: Collection[str]) -> tuple[Header, dict[str, tuple[str, ...]]]:
    """Return the header of such a file, and the values of those of ``keys`` that it has; see ``deep_values``.

    Raises ``TooManyValuesError`` beside what ``read_file_header_at`` raises.
    """
    with path.open("rb") as opened, _mapped(opened.fileno()) as file:
        transfer_syntax_uid, offset = read_meta(file)
        with memoryview(file) as whole, whole[offset:] as data_set:
            header = read_header(data_set, transfer_syntax_uid=transfer_syntax_uid)
            deep = deep_values(data_set, transfer_syntax_uid=transfer_syntax_uid, keys=keys) if keys else {}
            return header, deep


@contextmanager
def _mapped(descriptor: int) -> Iterator[mmap]:
    try:
        mapped = mmap(descriptor, 0, access=ACCESS_READ)
    except ValueError:
        raise UnreadableError("the file is empty") from None
    with mapped:
        yield mapped
