"""A study -> the instances that a flow gets, in a folder of the run. The study itself is never changed.

The files are hard links to those of the study, so that they take no room: containers see them read-only, or copies.
"""

from __future__ import annotations

import errno
import fcntl
import logging
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import Final

from flows_engine.definition.schema import FlowDefinition
from flows_engine.errors import NoInputError, NoSpaceError, WorkspaceError, is_full
from flows_engine.handoff.deep_values import TooManyValuesError
from flows_engine.handoff.study_files import read_study
from flows_engine.handoff.study_match import deep_keys
from flows_engine.handoff.study_store import StudyRecord
from flows_engine.view_plan import view_plan

# Containers run as any user; the folder of the run keeps the host's other users out.
_FOLDER: Final = 0o755
_FILE: Final = 0o644
# Another file system, one without hard links, one that allows no more of them, or a file of another user
# (fs.protected_hardlinks).
_NO_LINK: Final = (errno.EXDEV, errno.EPERM, errno.EACCES, errno.EMLINK, errno.EOPNOTSUPP, errno.ENOSYS)


def study_view(
    definition: FlowDefinition,
    *,
    study: StudyRecord,
    source: Path,
    folder: Path,
    logger: logging.Logger | logging.LoggerAdapter[logging.Logger],
) -> Path:
    """Return ``folder`` with those files below ``source`` that the models of ``definition`` get, laid out as it says.

    It is made if it is not there, whole or not at all; a retry finds it as it was. Safe to call from several threads.
    Raises ``NoInputError``, ``NoSpaceError`` and ``WorkspaceError``.
    """
    try:
        folder.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        with _alone(folder):
            if not folder.is_dir():
                files = read_study(source, keys=deep_keys([definition]))
                plan = view_plan(definition, study=study, files=files, source=source)
                copies = _make(plan, folder)
                logger.info("the models get %d of %d instances", len(plan), len(files.files))
                if copies:
                    logger.warning("no links to files of the study can be made here, so they are copied: %d", copies)
    except OSError as error:
        if is_full(error):
            raise NoSpaceError(f"no room is left below {folder.parent}: {error.strerror}") from error
        # The error's own text has the path of an instance.
        raise WorkspaceError(f"the input of the run cannot be made below {folder.parent}: {error.strerror}") from None
    except TooManyValuesError as error:
        raise NoInputError(f"input: matched: it cannot be told which instances match: {error}") from None
    return folder


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    with folder.with_name(f"{folder.name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _make(plan: Mapping[PurePosixPath, Path], folder: Path) -> int:
    """Return how many files could only be copied."""
    unfinished = folder.with_name(f".{folder.name}.unfinished")
    if unfinished.exists():
        shutil.rmtree(unfinished)
    _make_folder(unfinished)
    copies = 0
    for place, file in plan.items():
        for parent in reversed(place.parents[:-1]):
            _make_folder(unfinished / parent)
        copies += not _link(file, unfinished / place)
    unfinished.rename(folder)
    return copies


def _make_folder(folder: Path) -> None:
    folder.mkdir(exist_ok=True)
    folder.chmod(_FOLDER)


def _link(file: Path, target: Path) -> bool:
    """Return whether it is a link; it is a copy where none can be made."""
    try:
        target.hardlink_to(file)
    except OSError as error:
        if error.errno not in _NO_LINK:
            raise
        _copy(file, target)
        return False
    return True


def _copy(file: Path, target: Path) -> None:
    with file.open("rb") as source, target.open("xb") as copy:
        shutil.copyfileobj(source, copy)
        # A power cut must not leave an empty file where a retry takes it for whole.
        copy.flush()
        os.fsync(copy.fileno())
    target.chmod(_FILE)
