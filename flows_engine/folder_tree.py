"""Copying and removing folders that strangers filled: nothing but regular files is opened, and no link is followed.

Neither calls in each other nor open files grow with the depth of a folder, and one of any depth can be removed. Nobody
else may write to the folders meanwhile.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from typing import Final

DEEPEST: Final = 250
"""How many folders may lie in each other. The time that a path takes grows with its length."""

_OPEN_FOLDER: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_OPEN_FILE: Final = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
_ANYONE: Final = 0o777
_ANYONES_FILE: Final = 0o666


def remove_tree(folder: Path) -> None:
    """Remove ``folder`` and all that is in it; a link or a file in its place is removed itself. Raises ``OSError``.

    A folder within is moved to the top before it is emptied: none is deep then. After an error they lie otherwise.
    """
    if folder.is_symlink() or (folder.exists() and not folder.is_dir()):
        folder.unlink()
        return
    if not folder.exists():
        return
    _grant_owner(os.fspath(folder), within=None)
    with _open_folder(folder) as top:
        _empty(top)
    folder.rmdir()


@contextmanager
def _open_folder(name: str | Path, *, within: int | None = None) -> Iterator[int]:
    descriptor = os.open(name, _OPEN_FOLDER, dir_fd=within)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def _empty(top: int) -> None:
    numbers = count()
    pending = _without_files(top, top=top, numbers=numbers)
    while pending:
        name = pending.pop()
        with _open_folder(name, within=top) as current:
            pending += _without_files(current, top=top, numbers=numbers)
        os.rmdir(name, dir_fd=top)


def _without_files(current: int, *, top: int, numbers: count[int]) -> list[str]:
    """Remove all but the folders of ``current``, move these to ``top``, and return what they are called there."""
    moved: list[str] = []
    with os.scandir(current) as entries:
        found = [(entry.name, entry.is_dir(follow_symlinks=False)) for entry in entries]
    for name, is_folder in found:
        if not is_folder:
            os.unlink(name, dir_fd=current)
            continue
        try:
            os.rmdir(name, dir_fd=current)
        except OSError as error:
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                raise
            _grant_owner(name, within=current)
            moved.append(name if current == top else _move(name, current=current, top=top, numbers=numbers))
    return moved


def _move(name: str, *, current: int, top: int, numbers: count[int]) -> str:
    while True:
        free = f"moved-{next(numbers)}"
        try:
            os.mkdir(free, dir_fd=top)
        except FileExistsError:
            continue
        # A folder takes the place of an empty one.
        os.rename(name, free, src_dir_fd=current, dst_dir_fd=top)
        return free


def _grant_owner(name: str, *, within: int | None) -> None:
    status = os.stat(name, dir_fd=within, follow_symlinks=False)
    mode = stat.S_IMODE(status.st_mode)
    if mode & 0o700 != 0o700 and os.geteuid() in (0, status.st_uid):
        os.chmod(name, mode | 0o700, dir_fd=within)


def copy_tree(source: Path, target: Path) -> None:
    """Copy the folders and regular files of ``source`` to ``target``, which is made, for anyone to write to.

    Links, devices, sockets and fifos are passed over. What a file does not hold (a hole) takes no room in its copy
    either. Raises ``OSError``, for a path that is too long as well.
    """
    target.mkdir()
    target.chmod(_ANYONE)
    pending = [(os.fspath(source), os.fspath(target))]
    while pending:
        here, there = pending.pop()
        with _open_folder(here) as read_from, _open_folder(there) as write_to:
            pending += [(f"{here}/{name}", f"{there}/{name}") for name in _copy_folder(read_from, write_to)]


def _copy_folder(read_from: int, write_to: int) -> list[str]:
    """Copy the files of a folder, make the folders that are in it, and return their names."""
    folders: list[str] = []
    with os.scandir(read_from) as entries:
        for entry in entries:
            if entry.is_dir(follow_symlinks=False):
                os.mkdir(entry.name, dir_fd=write_to)
                os.chmod(entry.name, _ANYONE, dir_fd=write_to)
                folders.append(entry.name)
            elif entry.is_file(follow_symlinks=False):
                _copy_file(entry.name, read_from, write_to)
    return folders


def _copy_file(name: str, source: int, target: int) -> None:
    read_from = os.open(name, _OPEN_FILE, dir_fd=source)
    try:
        status = os.fstat(read_from)
        if not stat.S_ISREG(status.st_mode):
            return
        write_to = os.open(name, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, _ANYONES_FILE, dir_fd=target)
        try:
            os.ftruncate(write_to, status.st_size)
            _copy_data(read_from, write_to, size_bytes=status.st_size)
            os.fchmod(write_to, _ANYONES_FILE)
        finally:
            os.close(write_to)
    finally:
        os.close(read_from)


def _copy_data(read_from: int, write_to: int, *, size_bytes: int) -> None:
    end = 0
    while end < size_bytes:
        try:
            start = os.lseek(read_from, end, os.SEEK_DATA)
        except OSError as error:
            if error.errno == errno.ENXIO:
                return  # nothing but a hole is left
            raise
        end = os.lseek(read_from, start, os.SEEK_HOLE)
        os.lseek(write_to, start, os.SEEK_SET)
        while start < end:
            sent = os.sendfile(write_to, read_from, start, end - start)
            if not sent:
                return
            start += sent
