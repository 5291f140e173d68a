"""The folders of one run, below ``DATA_DIR``::

runs/<flow_run_id>/                0700: the host's other users stay out; containers see only what is mounted
  model-<n>/output/                0777: a container may run as any user
  model-<n>/input/                 a copy, only where the model may write to its input
  deliveries/<destination>.jsonl   what has arrived
"""

from __future__ import annotations

import os
import shutil
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from flows_engine.errors import WorkspaceError

_ANYONE: Final = 0o777


@dataclass(frozen=True, kw_only=True)
class StepFolders:
    """What one model reads and writes."""

    input: Path
    output: Path


class Workspace:
    """The folder ``DATA_DIR/runs/<run id>``. Raises ``WorkspaceError`` for what cannot be made, read or removed."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def output(self, step: int) -> Path:
        """Return where model number ``step`` (counted from 0) writes, whether or not it has."""
        return self._step(step) / "output"

    def journal(self, destination: int) -> Path:
        """Return where the deliveries to destination number ``destination`` (counted from 0) are written down."""
        return self.root / "deliveries" / f"{destination + 1}.jsonl"

    def prepare(self, step: int, *, source: Path, copy_input: bool) -> StepFolders:
        """Return fresh folders for model number ``step``, whose input is ``source``.

        What a killed attempt left is removed. With ``copy_input`` the input is a copy of the regular files and folders
        of ``source``, writable for anyone; links, devices and fifos are not copied.
        """
        if not source.is_dir():
            raise WorkspaceError(
                f"the input of model {step + 1} is not at {source}: the run began on another host, or its files were"
                " removed; process the study again"
            )
        folder = self._step(step)
        try:
            self.root.mkdir(mode=0o700, parents=True, exist_ok=True)
            _remove(folder)
            folder.mkdir(mode=0o700)
            output = folder / "output"
            output.mkdir()
            output.chmod(_ANYONE)
            if copy_input:
                _copy(source, folder / "input")
        except OSError as error:
            raise WorkspaceError(
                f"the folders of model {step + 1} cannot be made below {self.root}: {error.strerror or error}."
                " What a container wrote as root can only be removed by root: let this worker run as root, or let the"
                " model run as this worker's user"
            ) from error
        return StepFolders(input=folder / "input" if copy_input else source, output=output)

    def open_for_reading(self, step: int) -> None:
        """Let anyone read what model number ``step`` wrote, since the next model may run as another user.

        Only what this process may change is changed; nothing is said about the rest.
        """
        for _, folders, files, descriptor in os.fwalk(self.output(step), follow_symlinks=False):
            _grant(descriptor, ".", 0o555)
            for name in folders:
                _grant(descriptor, name, 0o555)
            for name in files:
                _grant(descriptor, name, 0o444)

    def _step(self, step: int) -> Path:
        return self.root / f"model-{step + 1}"


def _grant(parent: int, name: str, wanted: int) -> None:
    status = os.stat(name, dir_fd=parent, follow_symlinks=False)
    mode = stat.S_IMODE(status.st_mode)
    ours = os.geteuid() in (0, status.st_uid)
    if ours and mode & wanted != wanted and (stat.S_ISREG(status.st_mode) or stat.S_ISDIR(status.st_mode)):
        os.chmod(name, mode | wanted, dir_fd=parent)


def _remove(folder: Path) -> None:
    if folder.is_symlink() or (folder.exists() and not folder.is_dir()):
        folder.unlink()
    elif folder.exists():
        for _, folders, _, descriptor in os.fwalk(folder, follow_symlinks=False):
            _grant(descriptor, ".", 0o700)
            for name in folders:
                _grant(descriptor, name, 0o700)
        shutil.rmtree(folder)


def _copy(source: Path, target: Path) -> None:
    target.mkdir()
    target.chmod(_ANYONE)
    with os.scandir(source) as entries:
        for entry in entries:
            copied = target / entry.name
            if entry.is_dir(follow_symlinks=False):
                _copy(Path(entry.path), copied)
            elif entry.is_file(follow_symlinks=False):
                shutil.copyfile(entry.path, copied, follow_symlinks=False)
                copied.chmod(0o666)
