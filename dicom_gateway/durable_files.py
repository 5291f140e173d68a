"""Writing so that it is still there after a power cut: data, then name, then folder (fsync(2), NOTES)."""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import stat
import struct
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import Final

PRIVATE_FOLDER: Final = 0o700
SHARED_FOLDER: Final = 0o755
PRIVATE_FILE: Final = 0o600
SHARED_FILE: Final = 0o644

# ioctl_iflags(2); a kernel of 64 bits.
_FS_IOC_GETFLAGS: Final = 0x80086601
_FS_IOC_SETFLAGS: Final = 0x40086602
_FS_TOPDIR_FL: Final = 0x00020000
_FLAGS: Final = struct.Struct("@l")
# sync_file_range(2); waiting and writing at once makes sure that what was written on the way is waited for.
_WAIT_BEFORE: Final = 1
_WRITE: Final = 2
_WAIT_AFTER: Final = 4
_libc: Final = ctypes.CDLL(None, use_errno=True)
_sync_file_range: Final = _libc.sync_file_range
_sync_file_range.argtypes = (ctypes.c_int, ctypes.c_int64, ctypes.c_int64, ctypes.c_uint)
_SYNC_NAMES_WITH_FILES: Final = frozenset({"ext4", "xfs", "btrfs"})
"""Their fsync writes out the change that made the file, and the folder's new entry is part of the same change."""


def sync_folder(folder: Path) -> None:
    """Make the names in ``folder`` durable."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def begin_to_write(descriptor: int) -> None:
    """Have the disk begin to write the content of an open file. Raises ``OSError``. Nothing is durable by that."""
    _write_out(descriptor, _WRITE)


def wait_until_written(descriptor: int) -> None:
    """Return once the content of an open file has been written. Raises ``OSError``, which a later fsync may not.

    Nothing is durable by that: the file system's own notes on where the content lies are not written.
    """
    _write_out(descriptor, _WAIT_BEFORE | _WRITE | _WAIT_AFTER)


def sync_file_system(descriptor: int) -> None:
    """Force everything of a file system onto its disk, by any open file or folder of it (syncfs(2))."""
    if _libc.syncfs(descriptor) != 0:
        raise _last_error()


def _write_out(descriptor: int, flags: int) -> None:
    # Where it is not known, the sync that follows does all the work.
    if _sync_file_range(descriptor, 0, 0, flags) != 0 and (error := _last_error()).errno != errno.ENOSYS:
        raise error


def _last_error() -> OSError:
    number = ctypes.get_errno()
    return OSError(number, os.strerror(number))


def syncs_names_with_files(folder: int) -> bool:
    """Tell whether fsync(2) of a file made in an open folder makes its name durable too; False if in doubt.

    POSIX promises that only of an fsync of the folder. ``tests/integration/test_power_cut.py`` tries it.
    """
    with suppress(OSError, ValueError, LookupError, StopIteration):
        fields = dict(line.split(b":", 1) for line in Path(f"/proc/self/fdinfo/{folder}").read_bytes().splitlines())
        mount = fields[b"mnt_id"].strip()
        # proc_pid_mountinfo(5): the mount's id, …, a hyphen, the type of the file system, …. Its paths are any bytes.
        mounts = (line.split() for line in Path("/proc/self/mountinfo").read_bytes().splitlines())
        found = next(line for line in mounts if line[:1] == [mount])
        return found[found.index(b"-") + 1].decode() in _SYNC_NAMES_WITH_FILES
    return False


def spread_folders(folder: Path) -> None:
    """Have the folders made in ``folder`` lie apart on the disk, where its file system is one of the ext family.

    Otherwise they share the part of the disk where older ones were, and ext4 searches that for free inodes, file by
    file, for minutes after thousands were deleted there: twenty times as long as it takes to make a file.
    """
    with suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        try:
            flags = bytearray(fcntl.ioctl(descriptor, _FS_IOC_GETFLAGS, bytes(_FLAGS.size)))
            (known,) = _FLAGS.unpack(flags)
            if not known & _FS_TOPDIR_FL:
                fcntl.ioctl(descriptor, _FS_IOC_SETFLAGS, _FLAGS.pack(known | _FS_TOPDIR_FL))
        finally:
            os.close(descriptor)


def keeps_modes(folder: Path) -> bool:
    """Tell whether a file in ``folder`` has the mode that it was given, and keeps it. Raises ``OSError``."""
    descriptor, name = tempfile.mkstemp(dir=folder, prefix=".modes-")
    try:
        kept = []
        for mode in (PRIVATE_FILE, SHARED_FILE):
            os.fchmod(descriptor, mode)
            kept.append(stat.S_IMODE(os.fstat(descriptor).st_mode) == mode)
        return all(kept)
    finally:
        os.close(descriptor)
        Path(name).unlink()


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
