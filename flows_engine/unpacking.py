"""A tar archive -> a folder, without writing anywhere else.

The standard library's extraction filters say the same, but came with Python 3.11.4; Debian 12 has 3.11.2.
"""

from __future__ import annotations

import os
import shutil
import tarfile
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import IO, Final

import zstandard

from flows_engine.errors import StaticMountError

_CHUNK_BYTES: Final = 1024 * 1024


def unpack(archive: Path, folder: Path) -> None:
    """Unpack ``archive`` (plain or compressed with gzip, bzip2, xz or Zstandard) into the existing ``folder``.

    Files keep their execute bit and nothing else of their mode, owner and times. ``StaticMountError`` for a member that
    leads out of the folder by its name or as a link, and for devices and fifos; ``tarfile.TarError``, ``EOFError`` or
    ``OSError`` for an archive that cannot be read.
    """
    with _opened(archive, scratch=folder.parent) as members:
        for member in members:
            parts = _inside(member.name, archive)
            if parts:
                _place(members, member, folder.joinpath(*parts), folder=folder, archive=archive)


@contextmanager
def _opened(archive: Path, *, scratch: Path) -> Iterator[tarfile.TarFile]:
    if archive.suffix != ".zst":
        with tarfile.open(archive) as members:
            yield members
        return
    # Members may refer to earlier ones, and a compressed stream cannot go back to them. The file has no name, so that
    # nothing is left of it, however this ends.
    with tempfile.TemporaryFile(dir=scratch) as plain:
        with archive.open("rb") as compressed:
            try:
                _decompress(compressed, plain)
            except zstandard.ZstdError as error:
                raise tarfile.ReadError(str(error)) from error
        plain.seek(0)
        with tarfile.open(fileobj=plain) as members:
            yield members


def _decompress(compressed: IO[bytes], plain: IO[bytes]) -> None:
    """Raises ``EOFError`` where the last frame is cut short, which Zstandard's own ``copy_stream`` does not tell."""
    frame = None
    while chunk := compressed.read(_CHUNK_BYTES):
        while chunk:
            frame = frame or zstandard.ZstdDecompressor().decompressobj()
            plain.write(frame.decompress(chunk))
            # Several frames may follow each other; what is left over begins the next one.
            frame, chunk = (None, frame.unused_data) if frame.eof else (frame, b"")
    if frame is not None:
        raise EOFError("the archive ends too early")


def _inside(name: str, archive: Path) -> tuple[str, ...]:
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts:
        raise StaticMountError(f"archive {archive.name} has a member that leads out of it: {name!r}")
    return path.parts


def _place(members: tarfile.TarFile, member: tarfile.TarInfo, path: Path, *, folder: Path, archive: Path) -> None:
    _make_parents(path.parent, folder=folder, archive=archive)
    if member.isdir():
        if path.is_symlink() or not path.is_dir():
            path.mkdir(mode=0o755)
        return
    if path.is_symlink() or path.is_file():
        path.unlink()
    if member.issym():
        _inside_link(member, archive)
        path.symlink_to(member.linkname)
    elif member.isfile() or member.islnk():
        if member.islnk():
            _inside(member.linkname, archive)
        content = members.extractfile(member)
        if content is None:
            raise StaticMountError(f"archive {archive.name}: {member.name!r} links to nothing in it")
        with content, path.open("xb") as file:
            shutil.copyfileobj(content, file, 1024 * 1024)
        path.chmod(0o755 if member.mode & 0o100 else 0o644)
    else:
        raise StaticMountError(f"archive {archive.name}: {member.name!r} is neither a file nor a folder nor a link")


def _make_parents(parent: Path, *, folder: Path, archive: Path) -> None:
    """Make the folders above a member. None of them may be a link: then what lies below is where its name says."""
    current = folder
    for part in parent.relative_to(folder).parts:
        current = current / part
        if current.is_symlink():
            raise StaticMountError(f"archive {archive.name} has a member below a link: {part!r}")
        current.mkdir(mode=0o755, exist_ok=True)


def _inside_link(member: tarfile.TarInfo, archive: Path) -> None:
    target = os.path.normpath(PurePosixPath(member.name).parent / member.linkname)
    if target.startswith(("/", "..")):
        raise StaticMountError(f"archive {archive.name} has a link that leads out of it: {member.name!r}")
