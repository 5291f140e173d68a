"""A tar archive that comes from a Docker engine -> a folder, while it comes, in constant memory.

The archive is what a model left, and its sender is another host: names, links and sizes are hostile. Links are made as
they are, and never followed, as in an output folder that was mounted. Nothing is made outside the folder, and no
device at all.
"""

from __future__ import annotations

import os
import shutil
import stat
import tarfile
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import IO, Any, Final, Self, cast

from flows_engine.disk_reserve import SETTING
from flows_engine.errors import NoSpaceError, WorkspaceError, is_full
from flows_engine.folder_tree import DEEPEST

_CHUNK_BYTES: Final = 1024 * 1024
_MAX_REST_BYTES: Final = 1024 * 1024
"""How much may come behind the end of an archive: programs fill up its last record."""

_END: Final = tarfile.EOFHeaderError  # type: ignore[attr-defined] # the stubs lack it
_LEADS_OUT: Final = "an output that the Docker engine sent has a member that leads out of it"
_CUT: Final = "an output that the Docker engine sent is no whole archive"


def unpack_received(chunks: Iterator[bytes], folder: Path, *, reserve_bytes: int = 0) -> Mapping[str, int]:
    """Unpack an archive into the existing, empty ``folder``; its first member is the folder itself.

    Returns how many entries were passed over, by their kind. Files get no other mode than read, write and execute.
    Raises ``WorkspaceError`` for an archive that is not whole or leads out of the folder, and ``NoSpaceError`` before
    a file is begun that leaves less than ``reserve_bytes`` of the disk.
    """
    skipped = Counter[str]()
    try:
        with _members(chunks) as archive:
            while (member := archive.next()) is not None:
                # tarfile keeps all that it has seen, and a model may leave millions.
                archive.members.clear()
                if kind := _passed_over(member):
                    skipped[kind] += 1
                else:
                    _place(archive, member, folder, reserve_bytes=reserve_bytes)
    except (tarfile.TarError, EOFError) as error:
        raise WorkspaceError(f"{_CUT}: {error}") from error
    except (ValueError, OverflowError, RecursionError) as error:
        # What tarfile makes of numbers, texts and chains of headers that make no sense. It may quote a name.
        raise WorkspaceError(f"{_CUT}: {type(error).__name__}") from None
    except OSError as error:
        if is_full(error):
            raise NoSpaceError(f"no room is left for what a model left, below {folder}: {error.strerror}") from error
        raise WorkspaceError(
            f"what a model left cannot be written below {folder}: {error.strerror or type(error).__name__}"
        ) from error
    return dict(sorted(skipped.items()))


class _Member(tarfile.TarInfo):
    @classmethod
    def fromtarfile(cls, archive: tarfile.TarFile) -> Self:
        try:
            return super().fromtarfile(archive)
        except _END:
            # Without it, an archive that is cut between two members would pass for a whole one.
            cast("_Archive", archive).has_ended = True
            raise


class _Archive(tarfile.TarFile):
    members: list[tarfile.TarInfo]
    tarinfo = _Member
    has_ended = False


@contextmanager
def _members(chunks: Iterator[bytes]) -> Iterator[_Archive]:
    arriving = _Arriving(chunks)
    # No compression, or a short archive could be one of terabytes.
    with _Archive(fileobj=cast("IO[bytes]", arriving), errorlevel=2) as archive:
        yield archive
        if not archive.has_ended:
            raise EOFError("it ends too early")
        arriving.drain()


class _Arriving:
    """What comes, as a file that is read from its beginning to its end once."""

    def __init__(self, chunks: Iterator[bytes]) -> None:
        self._chunks = chunks
        self._chunk = memoryview(b"")
        self._position = 0

    def read(self, size: int = -1) -> bytes:
        # Contents are read in chunks. A longer header is no name, but an attack on our memory.
        if not 0 <= size <= _CHUNK_BYTES:
            raise tarfile.ReadError("it has a header that is too long")
        parts: list[memoryview] = []
        while size and self._has_more():
            part, self._chunk = self._chunk[:size], self._chunk[size:]
            parts.append(part)
            size -= len(part)
            self._position += len(part)
        return b"".join(parts)

    def seek(self, position: int, whence: int = os.SEEK_SET) -> int:
        if whence != os.SEEK_SET or position < self._position:
            raise tarfile.ReadError("it cannot be read in one go")
        while self._position < position and self._has_more():
            skipped = min(position - self._position, len(self._chunk))
            self._chunk = self._chunk[skipped:]
            self._position += skipped
        return self._position

    def tell(self) -> int:
        return self._position

    def drain(self) -> None:
        """Read to the end of the stream, as a connection is not over before."""
        end = self._position + _MAX_REST_BYTES
        if self.seek(end) == end:
            raise tarfile.ReadError("something follows its end")

    def _has_more(self) -> bool:
        while not self._chunk:
            chunk = next(self._chunks, None)
            if chunk is None:
                return False
            self._chunk = memoryview(chunk)
        return True


def _passed_over(member: tarfile.TarInfo) -> str | None:
    if member.isfile() or member.isdir() or member.issym() or member.islnk():
        return None
    return "fifo" if member.isfifo() else "device"


def _place(archive: tarfile.TarFile, member: tarfile.TarInfo, folder: Path, *, reserve_bytes: int) -> None:
    parts = _below_the_first(member.name)
    if not parts:
        if not member.isdir():
            raise WorkspaceError(f"{_CUT}: its first member is no folder")
        return
    if len(parts) - (not member.isdir()) > DEEPEST:
        # Each costs as many looks as it is deep. Who lists an output would refuse it all the same.
        raise WorkspaceError(f"an output folder has more than {DEEPEST} folders in each other")
    path = folder.joinpath(*parts)
    _make_parents(path.parent, folder)
    if member.isdir():
        if not _is_folder(path):
            path.mkdir(mode=0o700)
        path.chmod(member.mode & 0o777 | 0o700)
    elif member.issym():
        path.symlink_to(member.linkname)
    elif member.islnk():
        first = folder.joinpath(*_below_the_first(member.linkname))
        _make_parents(first.parent, folder)
        os.link(first, path, follow_symlinks=False)
    else:
        _assert_room(member, folder, reserve_bytes=reserve_bytes)
        _write(archive, member, path)


def _below_the_first(name: str) -> tuple[str, ...]:
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts:
        raise WorkspaceError(_LEADS_OUT)
    return path.parts[1:]


def _make_parents(parent: Path, folder: Path) -> None:
    """Make the folders above a member. None of them may be a link: then what lies below is where its name says."""
    current = folder
    for part in parent.relative_to(folder).parts:
        current = current / part
        if not _is_folder(current):
            current.mkdir(mode=0o700)


def _is_folder(path: Path) -> bool:
    """Tell whether a folder is there already. Raises ``WorkspaceError`` where it is something else, like a link."""
    try:
        mode = path.lstat().st_mode
    except FileNotFoundError:
        return False
    if not stat.S_ISDIR(mode):
        raise WorkspaceError(_LEADS_OUT)
    return True


def _assert_room(member: tarfile.TarInfo, folder: Path, *, reserve_bytes: int) -> None:
    free_bytes = shutil.disk_usage(folder).free
    if member.size > free_bytes - reserve_bytes:
        raise NoSpaceError(
            f"a model left a file of {member.size} bytes, and {free_bytes} bytes are free below {folder},"
            f" of which {SETTING} ({reserve_bytes}) are to stay so"
        )


def _write(archive: tarfile.TarFile, member: tarfile.TarInfo, path: Path) -> None:
    content = archive.extractfile(member)
    if content is None or member.issparse():
        raise tarfile.ReadError("it has a file with holes")
    with content, path.open("xb") as file:
        shutil.copyfileobj(cast("IO[Any]", content), file, _CHUNK_BYTES)
    if path.lstat().st_size != member.size:
        raise EOFError("a file ends too early")
    path.chmod(member.mode & 0o777 | 0o600)
