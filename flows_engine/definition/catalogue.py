"""The definitions in force: those of a folder, kept up to date while it changes."""

from __future__ import annotations

import hashlib
import os
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Final

from pydantic import ValidationError
from watchfiles import watch

from flows_engine.definition.errors import DefinitionError, Problem
from flows_engine.definition.loading import LoadedDefinition, load_definition
from flows_engine.definition.schema import FlowDefinition

# Bind mounts and network shares do not tell of every change: the folder is looked at anyway, this often.
_LOOK_ANYWAY_SECONDS: Final = 10.0
_SUFFIXES: Final = {".yaml", ".yml"}


@dataclass(frozen=True, kw_only=True)
class CatalogueChange:
    """What a look at the folder brought. Problems and warnings are reported once, until their file changes again."""

    added: tuple[str, ...] = ()
    changed: tuple[str, ...] = ()
    removed: tuple[str, ...] = ()
    problems: tuple[Problem, ...] = ()
    warnings: tuple[Problem, ...] = ()

    def __bool__(self) -> bool:
        """Tell whether there is anything to tell."""
        return bool(self.added or self.changed or self.removed or self.problems or self.warnings)


@dataclass(frozen=True, kw_only=True)
class _File:
    """One file as it was last read. ``definition`` is its last good version, if it ever had one."""

    digest: str
    definition: FlowDefinition | None
    problems: tuple[Problem, ...] = ()
    warnings: tuple[Problem, ...] = field(default=(), compare=False)


class FlowCatalogue:
    """The definitions of ``folder`` that are in force.

    A file that becomes bad leaves its last good version in force; so that this outlives a restart, last good versions are
    kept below ``state_folder``. A file that is removed takes its definition with it. If the folder itself cannot be read,
    everything stays as it is. Safe to use from several threads.
    """

    def __init__(self, folder: Path, *, state_folder: Path) -> None:
        self._folder = folder
        self._state_folder = state_folder
        self._files: Mapping[str, _File] = {}
        self._snapshot: Mapping[str, FlowDefinition] = MappingProxyType({})
        self._conflicts: tuple[Problem, ...] = ()
        self._folder_problem: tuple[Problem, ...] = ()
        self._refreshing = threading.Lock()

    def snapshot(self) -> Mapping[str, FlowDefinition]:
        """Return the definitions in force at this moment, by name. Later changes do not show in it."""
        return self._snapshot

    def refresh(self) -> CatalogueChange:
        """Look at the folder, take over what is new, and return what changed since the last look."""
        with self._refreshing:
            try:
                paths = sorted(path for path in self._folder.iterdir() if _is_definition(path))
            except OSError as error:
                return self._folder_unreadable(error)
            self._folder_problem = ()
            before, files = self._files, {path.name: self._read(path) for path in paths}
            for name in before.keys() - files.keys():
                self._last_good(name).unlink(missing_ok=True)
            self._files = files
            return self._take_over(before)

    def watch(self, stop: threading.Event, on_change: Callable[[CatalogueChange], None]) -> None:
        """Call ``on_change`` for every change until ``stop`` is set. An error of ``on_change`` ends the watch."""
        while not stop.is_set():
            try:
                for _ in watch(
                    self._folder,
                    stop_event=stop,
                    recursive=False,
                    rust_timeout=int(_LOOK_ANYWAY_SECONDS * 1000),
                    yield_on_timeout=True,
                    raise_interrupt=False,
                ):
                    change = self.refresh()
                    if change:
                        on_change(change)
            except OSError:  # the folder is not there, or went away: it may come back
                change = self.refresh()
                if change:
                    on_change(change)
                stop.wait(_LOOK_ANYWAY_SECONDS)

    def _folder_unreadable(self, error: OSError) -> CatalogueChange:
        problem = Problem(
            file=self._folder,
            line=None,
            field="",
            reason=f"cannot be read as the folder of flow definitions: {error.strerror}",
            hint="set FLOW_DIRECTORY to the folder that holds them; the definitions in force stay",
        )
        news = () if self._folder_problem == (problem,) else (problem,)
        self._folder_problem = (problem,)
        return CatalogueChange(problems=news)

    def _read(self, path: Path) -> _File:
        try:
            digest = hashlib.sha256(path.read_bytes()).hexdigest()
        except OSError as error:
            digest = f"unreadable: {error.strerror}"
        before = self._files.get(path.name)
        if before is not None and before.digest == digest:
            return before
        try:
            loaded = load_definition(path)
        except DefinitionError as error:
            last_good = before.definition if before is not None else self._kept(path.name)
            return _File(digest=digest, definition=last_good, problems=_with_consequence(error.problems, last_good))
        self._keep(path.name, loaded)
        return _File(digest=digest, definition=loaded.definition, warnings=loaded.warnings)

    def _take_over(self, before: Mapping[str, _File]) -> CatalogueChange:
        news = [file for name, file in self._files.items() if before.get(name) is not file]
        snapshot, conflicts = _by_name(self._files, self._folder, in_force=self._snapshot)
        old, self._snapshot = self._snapshot, MappingProxyType(snapshot)
        new_conflicts = tuple(problem for problem in conflicts if problem not in self._conflicts)
        self._conflicts = conflicts
        return CatalogueChange(
            added=tuple(sorted(snapshot.keys() - old.keys())),
            changed=tuple(sorted(name for name in snapshot.keys() & old.keys() if snapshot[name] != old[name])),
            removed=tuple(sorted(old.keys() - snapshot.keys())),
            problems=tuple(problem for file in news for problem in file.problems) + new_conflicts,
            warnings=tuple(warning for file in news for warning in file.warnings),
        )

    def _keep(self, name: str, loaded: LoadedDefinition) -> None:
        path = self._last_good(name)
        content = loaded.definition.model_dump_json()
        if path.exists() and path.read_text() == content:
            return
        path.parent.mkdir(parents=True, exist_ok=True)
        unfinished = path.with_suffix(f".{os.getpid()}.tmp")
        unfinished.write_text(content)
        unfinished.replace(path)

    def _kept(self, name: str) -> FlowDefinition | None:
        try:
            return FlowDefinition.model_validate_json(self._last_good(name).read_bytes())
        except (FileNotFoundError, ValidationError):  # never there, or of a version whose form was another
            return None

    def _last_good(self, name: str) -> Path:
        return self._state_folder / f"{name}.json"


def _is_definition(path: Path) -> bool:
    return path.suffix in _SUFFIXES and not path.name.startswith(".") and path.is_file()


def _with_consequence(problems: tuple[Problem, ...], last_good: FlowDefinition | None) -> tuple[Problem, ...]:
    if last_good is None:
        return problems
    stays = Problem(
        file=problems[0].file, line=None, field="", reason=f"its last good version of {last_good.name} stays in force"
    )
    return (*problems, stays)


def _by_name(
    files: Mapping[str, _File], folder: Path, *, in_force: Mapping[str, FlowDefinition]
) -> tuple[dict[str, FlowDefinition], tuple[Problem, ...]]:
    """Return the definitions by name. Of two files with one name, the one that is in force wins, else the first."""
    owners: dict[str, str] = {}
    conflicts: list[Problem] = []
    for file_name, file in files.items():
        if file.definition is None:
            continue
        name = file.definition.name
        owner = owners.setdefault(name, file_name)
        if owner == file_name:
            continue
        if file.definition == in_force.get(name) != files[owner].definition:
            owners[name], owner, file_name = file_name, file_name, owner
        conflicts.append(
            Problem(
                file=folder / file_name,
                line=None,
                field="name",
                reason=f"{folder / owner} is called {name!r} too, and is the one in force",
                hint="give one of them another name",
            )
        )
    snapshot = {name: file.definition for name, owner in owners.items() if (file := files[owner]).definition is not None}
    return dict(sorted(snapshot.items())), tuple(conflicts)
