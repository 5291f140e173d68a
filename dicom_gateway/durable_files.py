"""Writing so that it is still there after a power cut: data, then name, then folder (fsync(2), NOTES)."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Final

PRIVATE_FOLDER: Final = 0o700
SHARED_FOLDER: Final = 0o755
PRIVATE_FILE: Final = 0o600
SHARED_FILE: Final = 0o644


def sync_folder(folder: Path) -> None:
    """Make the names in ``folder`` durable."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def make_folder(folder: Path, *, mode: int, durable: bool = True) -> None:
    """Create one folder, durably, whatever the umask; nothing happens where it is there. Its parent must exist."""
    try:
        folder.mkdir()
    except FileExistsError:
        return
    try:
        folder.chmod(mode)
        if durable:
            sync_folder(folder.parent)
    except OSError:
        folder.rmdir()
        raise


def write_file(path: Path, *parts: bytes, temporary: Path, mode: int, durable: bool = True) -> None:
    """Put ``parts``, one after the other, at ``path`` such that a reader, or a restart, sees all of it or nothing.

    ``temporary`` is a free name on the same file system. On any error neither name is left, and the ``OSError`` goes
    on. What is not ``durable`` outlives the process, and not a power cut.
    """
    try:
        _write(temporary, parts, mode=mode, durable=durable)
        temporary.rename(path)
    except OSError:
        temporary.unlink(missing_ok=True)
        raise
    if not durable:
        return
    try:
        sync_folder(path.parent)
    except OSError:
        path.unlink(missing_ok=True)
        raise


def _write(path: Path, parts: tuple[bytes, ...], *, mode: int, durable: bool) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, mode)
    try:
        os.fchmod(descriptor, mode)
        for part in parts:
            rest = memoryview(part)
            while rest:
                rest = rest[os.write(descriptor, rest) :]
        if durable:
            os.fsync(descriptor)
    finally:
        os.close(descriptor)
