"""What has arrived at one destination, on disk, so that a retry does not send it again."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Final, Self

from flows_engine.errors import WorkspaceError

_SYNC_SECONDS: Final = 0.5

Entry = tuple[str, int, int, int]


class DeliveryJournal:
    """One JSON line a delivered file, appended to ``path``; used in a ``with`` block by one process at a time.

    A line is written after the receiver confirmed the file, and is on disk half a second later or when the block ends:
    a crash may forget what arrived, and it is sent again; it never remembers what did not arrive. A file counts as
    delivered only while it is the very file that was sent: a model that ran again has written others.
    """

    def __init__(self, path: Path, *, folder: Path, destination: str) -> None:
        self._path = path
        self._folder = folder
        self._destination = destination
        self._delivered: set[Entry] = set()
        self._descriptor = -1
        self._synced_at = 0.0

    def __enter__(self) -> Self:
        try:
            self._path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
            self._read()
        except OSError as error:
            raise WorkspaceError(f"the delivery journal {self._path} cannot be used: {error.strerror}") from error
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            os.fdatasync(self._descriptor)
        finally:
            os.close(self._descriptor)

    def missing(self, files: Sequence[Path]) -> tuple[Path, ...]:
        """Return those of ``files`` that are not known to have arrived, in their order."""
        return tuple(file for file in files if self._entry(file) not in self._delivered)

    def add(self, file: Path) -> None:
        """Write down that the destination has confirmed ``file``."""
        entry = self._entry(file)
        self._delivered.add(entry)
        self._append([self._destination, *entry])
        now = time.monotonic()
        if now - self._synced_at >= _SYNC_SECONDS:
            os.fdatasync(self._descriptor)
            self._synced_at = now

    def _entry(self, file: Path) -> Entry:
        # The time of the last change of status cannot be set back, unlike that of the last modification.
        status = file.stat(follow_symlinks=False)
        return (str(file.relative_to(self._folder)), status.st_size, status.st_ctime_ns, status.st_ino)

    def _append(self, record: list[str | int]) -> None:
        data = json.dumps(record).encode() + b"\n"
        try:
            written = os.write(self._descriptor, data)
        except OSError as error:
            raise WorkspaceError(f"the delivery journal {self._path} cannot be written: {error.strerror}") from error
        if written != len(data):
            raise WorkspaceError(f"the delivery journal {self._path} cannot be written: the disk is full")

    def _read(self) -> None:
        with self._path.open("rb") as file:
            content = file.read()
        for line in content.splitlines():
            entry = self._parse(line)
            if entry is not None:
                self._delivered.add(entry)
        if content and not content.endswith(b"\n"):
            # A crash tore the last line: the next one must not grow onto it.
            os.write(self._descriptor, b"\n")

    def _parse(self, line: bytes) -> Entry | None:
        try:
            match json.loads(line):
                case [self._destination, str(path), int(size), int(changed), int(inode)]:
                    return (path, size, changed, inode)
        except ValueError:
            return None
        return None
