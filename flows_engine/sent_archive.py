"""Folders of ours -> one tar archive, made while it is sent: file by file, in constant memory.

A container may run as any user, so everything is readable for anyone. What is neither a file nor a folder nor a link
is left out, as no model could use it on another host.
"""

from __future__ import annotations

import os
import stat
import tarfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from flows_engine.errors import WorkspaceError
from flows_engine.output_files import open_regular

_CHUNK_BYTES: Final = 1024 * 1024
_SENT_BYTES: Final = 256 * 1024
"""How much is sent at once: headers of small files one by one would be a chunk of HTTP each."""


@dataclass(frozen=True, kw_only=True)
class SentFolder:
    """A folder, and its place in the archive: a path from the root, without a slash at its beginning."""

    source: Path
    place: str
    is_writable: bool
    """Whether anyone may write to it."""


def sent_archive(folders: Sequence[SentFolder]) -> Iterator[bytes]:
    """Yield an archive of ``folders``. Raises ``WorkspaceError`` for what cannot be read."""
    pending = bytearray()
    for part in _parts(folders):
        pending += part
        if len(pending) >= _SENT_BYTES:
            yield bytes(pending)
            pending.clear()
    yield bytes(pending) + bytes(tarfile.RECORDSIZE)


def _parts(folders: Sequence[SentFolder]) -> Iterator[bytes]:
    for folder in folders:
        try:
            yield _header(folder.place, folder.source.stat(), more=0o777 if folder.is_writable else 0o555)
            yield from _below(os.fspath(folder.source), folder.place)
        except OSError as error:
            raise WorkspaceError(
                f"what is below {folder.source} cannot be sent to the Docker engine: {error.strerror}"
            ) from error


def _below(source: str, place: str) -> Iterator[bytes]:
    pending = [(source, place)]
    while pending:
        folder, inside = pending.pop()
        with os.scandir(folder) as entries:
            for entry in entries:
                name, status = f"{inside}/{entry.name}", entry.stat(follow_symlinks=False)
                if stat.S_ISDIR(status.st_mode):
                    yield _header(name, status, more=0o555)
                    pending.append((entry.path, name))
                elif stat.S_ISLNK(status.st_mode):
                    yield _header(name, status, link=str(Path(entry.path).readlink()))
                elif stat.S_ISREG(status.st_mode):
                    yield from _file(entry.path, name)


def _file(path: str, name: str) -> Iterator[bytes]:
    with open_regular(Path(path)) as file:
        status = os.fstat(file.fileno())
        yield _header(name, status, more=0o444)
        remaining = status.st_size
        while remaining:
            data = file.read(min(remaining, _CHUNK_BYTES))
            if not data:
                raise WorkspaceError("a file became shorter while it was sent to the Docker engine")
            yield data
            remaining -= len(data)
        yield bytes(-status.st_size % tarfile.BLOCKSIZE)


def _header(name: str, status: os.stat_result, *, more: int = 0, link: str = "") -> bytes:
    member = tarfile.TarInfo(name)
    member.mode = status.st_mode & 0o777 | more
    member.mtime = int(status.st_mtime)
    if stat.S_ISDIR(status.st_mode):
        member.type = tarfile.DIRTYPE
    elif link:
        member.type, member.linkname = tarfile.SYMTYPE, link
    else:
        member.size = status.st_size
    # GNU's form has no limit for names and sizes, and takes names that are no UTF-8 as they are.
    return member.tobuf(tarfile.GNU_FORMAT, "utf-8", "surrogateescape")
