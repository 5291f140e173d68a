"""What a model left in its output folder. The folder is hostile: nothing but a regular file is ever opened."""

from __future__ import annotations

import os
import stat
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Final

from flows_engine.errors import WorkspaceError
from flows_engine.folder_tree import DEEPEST

RESULT_FILE: Final = "result.json"
"""What a model says of its result, at the top of its output folder. It is no part of the result."""

# Of what the operating system counts, whatever the disk's blocks are.
_BLOCK_BYTES: Final = 512
_PREAMBLE_BYTES: Final = 128
_MAGIC: Final = b"DICM"


@dataclass(frozen=True, kw_only=True)
class OutputFiles:
    """The regular files of a folder at any depth, sorted by path, and how many entries of other kinds it has."""

    files: tuple[Path, ...]
    skipped: dict[str, int]


def output_files(folder: Path) -> OutputFiles:
    """List ``folder`` without following a link. ``WorkspaceError`` where it is not a readable folder."""
    skipped: Counter[str] = Counter()
    files: list[str] = []
    for entry in _walk(folder):
        mode = entry.stat(follow_symlinks=False).st_mode
        if stat.S_ISREG(mode):
            files.append(entry.path)
        else:
            skipped[_kind(mode)] += 1
    return OutputFiles(files=tuple(Path(path) for path in sorted(files)), skipped=dict(sorted(skipped.items())))


def result_files(folder: Path) -> OutputFiles:
    """List ``folder`` as ``output_files`` does, without what is no part of the result."""
    found = output_files(folder)
    return OutputFiles(files=tuple(file for file in found.files if file != folder / RESULT_FILE), skipped=found.skipped)


def room_taken_bytes(folder: Path) -> int:
    """Return how much of the disk what is in ``folder`` takes, as far as it can be listed; holes take nothing."""
    taken = 0
    with suppress(WorkspaceError, OSError):
        for entry in _walk(folder):
            taken += entry.stat(follow_symlinks=False).st_blocks * _BLOCK_BYTES
    return taken


def is_dicom(path: Path) -> bool:
    """Return whether ``path`` is a regular file that starts as PS3.10 7.1 says: 128 bytes, then ``DICM``."""
    with open_regular(path) as file:
        return file.read(_PREAMBLE_BYTES + len(_MAGIC))[_PREAMBLE_BYTES:] == _MAGIC


def open_regular(path: Path) -> BinaryIO:
    """Open ``path`` for reading, bytes, unbuffered. ``WorkspaceError`` for anything but a readable regular file.

    A link is not followed and a fifo does not block, even if it took the place of a file after the folder was listed.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        raise WorkspaceError(f"an output file cannot be opened: {error.strerror}") from error
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise WorkspaceError("an output file is no longer a regular file")
    return os.fdopen(descriptor, "rb", buffering=0)


def _walk(folder: Path) -> Iterator[os.DirEntry[str]]:
    pending = [(os.fspath(folder), 0)]
    while pending:
        current, depth = pending.pop()
        if depth > DEEPEST:
            raise WorkspaceError(
                f"an output folder has more than {DEEPEST} folders in each other; it is below {folder}"
            )
        try:
            with os.scandir(current) as entries:
                found = list(entries)
        except OSError as error:
            raise WorkspaceError(
                f"an output folder cannot be listed: {error.strerror}; it is below {folder}"
            ) from error
        for entry in found:
            if entry.is_dir(follow_symlinks=False):
                pending.append((entry.path, depth + 1))
            else:
                yield entry


def _kind(mode: int) -> str:
    if stat.S_ISLNK(mode):
        return "symbolic link"
    if stat.S_ISFIFO(mode):
        return "fifo"
    if stat.S_ISSOCK(mode):
        return "socket"
    return "device"
