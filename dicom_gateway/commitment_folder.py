"""Requests for storage commitment that are not answered yet, on disk: ``DATA_DIR/commitments/<id>.json``.

Whoever works on one holds a lock on its file, which the kernel frees when that process dies: the gateway then finds it.
"""

from __future__ import annotations

import fcntl
import logging
import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Final

from pydantic import ValidationError
from uuid_utils import uuid7

from dicom_gateway import durable_files
from dicom_gateway.commitment import CommitmentRequest

_log = logging.getLogger(__name__)

_MOST_KEPT: Final = 1000
_NEW: Final = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC


class TooManyError(Exception):
    """So many requests wait that no more are taken."""


class KeptRequest:
    """A request whose file is locked. Ends with ``done`` or ``let_go``."""

    def __init__(self, path: Path, descriptor: int, request: CommitmentRequest) -> None:
        self._path = path
        self._descriptor = descriptor
        self.request = request

    def done(self) -> None:
        """Forget the request: it was answered, or never will be."""
        self._path.unlink(missing_ok=True)
        self.let_go()

    def let_go(self) -> None:
        """Leave it to others. May be called again."""
        descriptor, self._descriptor = self._descriptor, -1
        if descriptor >= 0:
            os.close(descriptor)

    def postpone(self, request: CommitmentRequest) -> None:
        """Leave it, changed, to later. Only for the gateway, which is the only one to look for requests."""
        durable_files.write_file(
            self._path,
            request.model_dump_json().encode(),
            temporary=self._path.with_suffix(".part"),
            mode=durable_files.PRIVATE_FILE,
        )
        self.let_go()


class CommitmentFolder:
    """The folder. It is there."""

    def __init__(self, root: Path) -> None:
        self._root = root

    def keep(self, request: CommitmentRequest) -> KeptRequest:
        """Write a request down, durably. Raises ``OSError`` and ``TooManyError``."""
        if sum(1 for _ in self._root.iterdir()) >= _MOST_KEPT:
            raise TooManyError(f"{_MOST_KEPT} requests wait for an answer already")
        path = self._root / f"{uuid7()}.json"
        temporary = path.with_suffix(".part")
        descriptor = os.open(temporary, _NEW, durable_files.PRIVATE_FILE)
        try:
            # Before it has its name: nobody else finds it free.
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            with os.fdopen(os.dup(descriptor), "wb") as file:
                file.write(request.model_dump_json().encode())
            os.fsync(descriptor)
            temporary.rename(path)
            durable_files.sync_folder(self._root)
        except OSError:
            os.close(descriptor)
            for name in (temporary, path):
                with suppress(OSError):
                    name.unlink()
            raise
        return KeptRequest(path, descriptor, request)

    def abandoned(self) -> Iterator[KeptRequest]:
        """Yield what nobody works on, the oldest first, locked."""
        for path in sorted(self._root.glob("*.json")):
            kept = _claimed(path)
            if kept is not None:
                yield kept


def _claimed(path: Path) -> KeptRequest | None:
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    except FileNotFoundError:
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return KeptRequest(path, descriptor, CommitmentRequest.model_validate_json(path.read_bytes()))
    except (BlockingIOError, FileNotFoundError):
        os.close(descriptor)
    except ValidationError:
        os.close(descriptor)
        _log.error("a request for storage commitment is damaged, and dropped", extra={"action": "commitment"})
        path.unlink(missing_ok=True)
    return None
