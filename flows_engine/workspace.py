"""The folders of one run, below ``DATA_DIR``::

runs/<flow_run_id>/                0700: the host's other users stay out; containers see only what is mounted
  study/                           what the flow gets of the study, where that is not the folder of the study itself
  model-<n>/output/                0777: a container may run as any user
  model-<n>/outputs/<name>/        the same, of a model that writes several
  model-<n>/config/config.yaml     what the flow tells the model
  model-<n>/input/ or inputs/…     copies, only where the model may write to its input
  model-<n>/record.json            how it was run
  model-<n>.unfinished             there from before its folders are made until it has ended well
  run.json                         what the run did
  deliveries/<destination>.jsonl   what has arrived
"""

from __future__ import annotations

import os
import stat
from collections.abc import Collection, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from flows_engine.errors import NoSpaceError, WorkspaceError, is_full
from flows_engine.folder_tree import DEEPEST, copy_tree, remove_tree

ELSEWHERE: Final = (
    "the run began on another host, whose DATA_DIR this host does not have, or its files were removed: retry it while"
    " no worker of this host takes runs of its pool, let the hosts share one DATA_DIR, or process the study again"
)
"""What that means which a run needs and this host does not have, and the way out."""

_ANYONE: Final = 0o777


@dataclass(frozen=True, kw_only=True)
class StepFolders:
    """What one model reads and writes, by the names that its flow has for it."""

    inputs: Mapping[str, Path]
    outputs: Mapping[str, Path]
    config: Path | None = None
    """The folder with the model's config.yaml."""


class Workspace:
    """The folder ``DATA_DIR/runs/<run id>``. Raises ``WorkspaceError`` for what cannot be made, read or removed,
    and ``NoSpaceError`` where the disk is full.
    """

    def __init__(self, root: Path) -> None:
        self.root = root

    @property
    def study(self) -> Path:
        """Where the run has an input of its own, if its flow asks for one."""
        return self.root / "study"

    def outputs(self, step: int, names: Collection[str]) -> dict[str, Path]:
        """Return where model number ``step`` (counted from 0) writes all of ``names``, whether or not it has."""
        return _folders(self._step(step), "output", names)

    def journal(self, destination: int) -> Path:
        """Return where the deliveries to destination number ``destination`` (counted from 0) are written down."""
        return self.root / "deliveries" / f"{destination + 1}.jsonl"

    def step_record(self, step: int) -> Path:
        """Return where it is written down how model number ``step`` was run."""
        return self._step(step) / "record.json"

    def is_unfinished(self, output: Path) -> bool:
        """Tell whether ``output`` is where an attempt writes that has not ended well: killed, failed, or going on."""
        if self.root not in output.parents:
            return False
        return self._mark(output.relative_to(self.root).parts[0]).exists()

    def finish(self, step: int) -> None:
        """Say that model number ``step`` (counted from 0) has ended well. This needs no room on the disk."""
        try:
            self._mark(self._step(step).name).unlink(missing_ok=True)
        except OSError as error:
            raise WorkspaceError(
                f"that model {step + 1} has ended cannot be kept below {self.root}: {error.strerror}"
            ) from error

    @property
    def run_record(self) -> Path:
        """Where it is written down what the run did."""
        return self.root / "run.json"

    def delivery_record(self, destination: int) -> Path:
        """Return where it is written down what destination number ``destination`` (counted from 0) has."""
        return self.root / "deliveries" / f"{destination + 1}.json"

    def forget_deliveries(self) -> None:
        """Remove what is written down of deliveries, before another output is made; what has arrived stays known."""
        for path in (self.root / "deliveries").glob("*.json"):
            path.unlink(missing_ok=True)

    def prepare(
        self,
        step: int,
        *,
        sources: Mapping[str, Path],
        writes: Collection[str],
        copy_inputs: bool,
        config: str | None = None,
    ) -> StepFolders:
        """Return fresh folders for model number ``step``, which reads ``sources`` and writes the names of ``writes``.

        What a killed attempt left is removed, and what is made counts as unfinished until ``finish``. With
        ``copy_inputs`` the inputs are copies of the regular files and folders of ``sources``, writable for anyone;
        links, devices and fifos are not copied. ``config`` is the text of a file that the model may read.
        """
        for source in sources.values():
            if not source.is_dir():
                raise WorkspaceError(f"the input of model {step + 1} is not at {source}; {ELSEWHERE}")
        folder = self._step(step)
        outputs = self.outputs(step, writes)
        copies = _folders(folder, "input", sources)
        try:
            self.root.mkdir(mode=0o700, parents=True, exist_ok=True)
            mark = self._mark(folder.name)
            # Beside the folder, and before it is emptied: who is killed at that leaves nothing that looks whole. On a
            # full disk the mark finds its room only afterwards.
            with suppress(OSError):
                mark.touch(mode=0o600)
            remove_tree(folder)
            mark.touch(mode=0o600)
            folder.mkdir(mode=0o700)
            for output in outputs.values():
                output.mkdir(parents=True)
                output.chmod(_ANYONE)
            if config is not None:
                (folder / "config").mkdir()
                (folder / "config" / "config.yaml").write_text(config, encoding="utf-8")
                # A container may run as any user, whatever this process's umask is.
                (folder / "config").chmod(0o755)
                (folder / "config" / "config.yaml").chmod(0o644)
            if copy_inputs:
                for name, source in sources.items():
                    copies[name].parent.mkdir(exist_ok=True)
                    copy_tree(source, copies[name])
        except OSError as error:
            if is_full(error):
                raise NoSpaceError(f"no room is left below {self.root}: {error.strerror}") from error
            raise WorkspaceError(
                f"the folders of model {step + 1} cannot be made below {self.root}: {error.strerror or error}."
                " What a container wrote as root can only be removed by root: let this worker run as root, or let the"
                " model run as this worker's user"
            ) from error
        return StepFolders(
            inputs=copies if copy_inputs else dict(sources),
            outputs=outputs,
            config=folder / "config" if config is not None else None,
        )

    def discard(self, step: int) -> None:
        """Remove what model number ``step`` (counted from 0) left, and copies that were made for it."""
        try:
            remove_tree(self._step(step))
        except OSError as error:
            raise WorkspaceError(
                f"what model {step + 1} left below {self.root} cannot be removed: {error.strerror}"
            ) from error

    def _step(self, step: int) -> Path:
        return self.root / f"model-{step + 1}"

    def _mark(self, folder: str) -> Path:
        return self.root / f"{folder}.unfinished"


def open_for_reading(folder: Path) -> None:
    """Let anyone read what a model wrote to ``folder``, since the next model may run as another user.

    Only what this process may change is changed; nothing is said about the rest.
    """
    with suppress(OSError):
        _grant(None, os.fspath(folder), 0o555)
    pending = [(os.fspath(folder), 0)]
    while pending:
        current, depth = pending.pop()
        # Who lists the folder says what is wrong with it.
        with suppress(OSError):
            pending += [(inner, depth + 1) for inner in _opened(current) if depth < DEEPEST]


def _opened(folder: str) -> list[str]:
    """Let anyone read what is in ``folder``; return the folders in it."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        inner: list[str] = []
        with os.scandir(descriptor) as entries:
            for entry in entries:
                is_folder = entry.is_dir(follow_symlinks=False)
                if is_folder:
                    inner.append(f"{folder}/{entry.name}")
                with suppress(OSError):
                    _grant(descriptor, entry.name, 0o555 if is_folder else 0o444)
        return inner
    finally:
        os.close(descriptor)


def _folders(parent: Path, kind: str, names: Collection[str]) -> dict[str, Path]:
    """Return a folder for each of ``names``: the plain one where there is one name only."""
    if len(names) == 1:
        return dict.fromkeys(names, parent / kind)
    return {name: parent / f"{kind}s" / name for name in names}


def _grant(parent: int | None, name: str, wanted: int) -> None:
    status = os.stat(name, dir_fd=parent, follow_symlinks=False)
    mode = stat.S_IMODE(status.st_mode)
    ours = os.geteuid() in (0, status.st_uid)
    if ours and mode & wanted != wanted and (stat.S_ISREG(status.st_mode) or stat.S_ISDIR(status.st_mode)):
        os.chmod(name, mode | wanted, dir_fd=parent)
