"""Folders and archives of ``STATIC_DIR`` -> folders that a container can see, read-only.

A folder is mounted as it is. An archive is unpacked once for each version of it. Sources that share a place in the
container are merged into one folder, the later winning where both have a file.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import tarfile
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Final

from flows_engine.definition.schema import StaticMount
from flows_engine.errors import StaticMountError
from flows_engine.interfaces import BindMount
from flows_engine.unpacking import unpack

ARCHIVE_SUFFIXES: Final = (".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz", ".tar.zst")


@dataclass(frozen=True, kw_only=True)
class StaticMounts:
    """The folder ``STATIC_DIR``, and ``DATA_DIR/static-cache`` for what is made of it."""

    static_dir: Path
    cache: Path

    def resolve(self, mounts: Sequence[StaticMount]) -> tuple[BindMount, ...]:
        """Return what is to be mounted, one folder a place. ``StaticMountError`` for a source that cannot be had."""
        sources: dict[str, list[Path]] = {}
        for mount in mounts:
            sources.setdefault(str(PurePosixPath(mount.target)), []).append(self._find(mount.source))
        return tuple(
            BindMount(source=self._folder(found), target=target, read_only=True) for target, found in sources.items()
        )

    def digests(self, mounts: Sequence[StaticMount]) -> dict[str, str | None]:
        """Return the SHA-256 of each archive among the sources of ``mounts``, in hexadecimal, by its name there.

        It is taken when an archive is unpacked. A folder has none.
        """
        found: dict[str, str | None] = {}
        for mount in mounts:
            source = self._find(mount.source)
            found[mount.source] = None if source.is_dir() else self._digest(source)
        return found

    def _digest(self, archive: Path) -> str:
        kept = self.cache / f"{_version([archive])}.sha256"
        try:
            return kept.read_text()
        except FileNotFoundError:
            with archive.open("rb") as file:
                digest = hashlib.file_digest(file, "sha256").hexdigest()
            unfinished = kept.with_suffix(f".{os.getpid()}-{threading.get_ident()}")
            unfinished.write_text(digest)
            unfinished.replace(kept)
            return digest

    def _find(self, source: str) -> Path:
        root = self.static_dir.resolve()
        for name in (source, *(source + suffix for suffix in ARCHIVE_SUFFIXES)):
            found = (root / name).resolve()
            if not found.is_relative_to(root):
                raise StaticMountError(f"static mount {source!r} leads out of STATIC_DIR ({root})")
            if found.is_dir() or (found.is_file() and (name != source or source.endswith(ARCHIVE_SUFFIXES))):
                return found
        raise StaticMountError(
            f"static mount {source!r} is not in STATIC_DIR ({root}): put a folder of this name there, or an archive"
            f" {source}.tar or {source}.tar.gz"
        )

    def _folder(self, sources: Sequence[Path]) -> Path:
        if len(sources) == 1 and sources[0].is_dir():
            return sources[0]
        folder = self.cache / _version(sources)
        try:
            self.cache.mkdir(mode=0o700, parents=True, exist_ok=True)
            with _alone(folder.with_suffix(".lock")):
                if not folder.is_dir():
                    self._make(folder, sources)
        except (OSError, tarfile.TarError, EOFError) as error:
            names = ", ".join(source.name for source in sources)
            raise StaticMountError(f"static mount {names} cannot be unpacked into {self.cache}: {error}") from error
        return folder

    def _make(self, folder: Path, sources: Sequence[Path]) -> None:
        unfinished = folder.with_suffix(".unfinished")
        if unfinished.exists():
            shutil.rmtree(unfinished)
        unfinished.mkdir(mode=0o755)
        for source in sources:
            if source.is_dir():
                shutil.copytree(source, unfinished, symlinks=True, dirs_exist_ok=True)
            else:
                self._digest(source)
                unpack(source, unfinished)
        unfinished.chmod(0o755)
        unfinished.rename(folder)


def _version(sources: Sequence[Path]) -> str:
    """Return a name for the contents of ``sources`` as they are now, without reading them."""
    digest = hashlib.sha256()
    for source in sources:
        for path in sorted(_tree(source)) if source.is_dir() else (source,):
            status = path.stat(follow_symlinks=False)
            digest.update(
                f"{path}\0{status.st_size}\0{status.st_mtime_ns}\0{status.st_ino}\n".encode(errors="surrogateescape")
            )
    return digest.hexdigest()[:32]


def _tree(folder: Path) -> Iterator[Path]:
    for current, _, files in os.walk(folder):
        yield from (Path(current) / name for name in files)


@contextmanager
def _alone(lock: Path) -> Iterator[None]:
    descriptor = os.open(lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)
