"""The definitions in force: those of a folder, kept up to date while it changes."""

from __future__ import annotations

import hashlib
import json
import os
import threading
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Final

from pydantic import TypeAdapter, ValidationError
from watchfiles import watch

from flows_engine.definition.errors import DefinitionError, Problem
from flows_engine.definition.loading import LARGEST_BYTES, load_definition
from flows_engine.definition.schema import FlowDefinition

# Bind mounts and network shares do not tell of every change: the folder is looked at anyway, this often.
_LOOK_ANYWAY_SECONDS: Final = 10.0
# A file that is still being written may be a valid definition already, one without its destinations: the folder is read
# once nothing has moved in it for so long, and by the second number at the latest.
_QUIET_MILLISECONDS: Final = 400
_LONGEST_UNREST_MILLISECONDS: Final = 5_000
_SUFFIXES: Final = {".yaml", ".yml"}
_LAST_GOOD_NAME: Final = "last-good.json"
_VERSIONS: Final = TypeAdapter(dict[str, FlowDefinition])


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
    """One file as it was last read. ``definition`` is None where it cannot be used, for the reasons in ``problems``."""

    digest: str
    definition: FlowDefinition | None
    problems: tuple[Problem, ...] = ()
    warnings: tuple[Problem, ...] = ()


class FlowCatalogue:
    """The definitions of ``folder`` that are in force.

    A file that becomes bad leaves its last good version in force; so that this outlives a restart, last good versions
    are kept below ``state_folder``, unless ``remember`` is False: for who only looks. A file that is removed takes its
    definition with it. If the folder itself cannot be read, or holds no definition any more, as one whose share is not
    mounted, everything stays as it is, over a restart too. Safe to use from several threads.

    ``docker_kwargs_allowed`` are the arguments of Docker that the site allows its flows beyond those that are for all.
    """

    def __init__(
        self,
        folder: Path,
        *,
        state_folder: Path,
        docker_kwargs_allowed: Collection[str] = (),
        remember: bool = True,
    ) -> None:
        self._folder = folder
        self._docker_kwargs_allowed = docker_kwargs_allowed
        self._last_good = LastGoodVersions(state_folder)
        self._remembers = remember
        self._files: Mapping[str, _File] = {}
        self._in_force: Mapping[str, FlowDefinition] | None = None
        """By file name. None until the first look."""
        self._snapshot: Mapping[str, FlowDefinition] = MappingProxyType({})
        self._reported: frozenset[tuple[Problem, str]] = frozenset()
        """What was told at the last look, each with the digest that its file had then."""
        self._refreshing = threading.Lock()

    def snapshot(self) -> Mapping[str, FlowDefinition]:
        """Return the definitions in force at this moment, by name. Later changes do not show in it."""
        return self._snapshot

    def refresh(self) -> CatalogueChange:
        """Look at the folder, take over what is new, and return what changed since the last look."""
        with self._refreshing:
            problems: list[Problem] = []
            warnings: list[Problem] = []
            before = self._in_force
            if before is None:
                before = self._remembered(warnings)
            try:
                files = self._read_all()
            except OSError as error:
                problems.append(_folder_unreadable(self._folder, error))
                in_force = dict(before)
            else:
                self._files = files
                if before and not files and not self._last_good.deleted:
                    problems.append(_folder_empty(self._folder, self._last_good.file))
                    return self._take_over(before, problems=problems, warnings=warnings)
                in_force, conflicts = settle(
                    {name: file.definition for name, file in self._files.items()}, in_force=before
                )
                problems += self._problems(in_force, conflicts)
                warnings += (warning for file in self._files.values() for warning in file.warnings)
                self._remember(in_force, warnings)
            return self._take_over(in_force, problems=problems, warnings=warnings)

    def watch(
        self,
        stop: threading.Event,
        on_change: Callable[[CatalogueChange], None],
        *,
        look_anyway_seconds: float = _LOOK_ANYWAY_SECONDS,
    ) -> None:
        """Call ``on_change`` for every change until ``stop`` is set. An error of ``on_change`` ends the watch."""
        while not stop.is_set():
            for _ in self._wakes(stop, look_anyway_seconds):
                change = self.refresh()
                if change:
                    on_change(change)

    def _wakes(self, stop: threading.Event, seconds: float) -> Iterator[None]:
        """Yield whenever it is time to look: something moved in the folder, or some time has passed."""
        watched = _identity(self._folder)
        try:
            for _ in watch(
                self._folder,
                stop_event=stop,
                watch_filter=None,
                recursive=False,
                step=_QUIET_MILLISECONDS,
                debounce=_LONGEST_UNREST_MILLISECONDS,
                rust_timeout=int(seconds * 1000),
                yield_on_timeout=True,
                raise_interrupt=False,
            ):
                yield
                # A folder that was exchanged for another one of its name would not be heard of again.
                if _identity(self._folder) != watched:
                    return
        # watchfiles raises a RuntimeError of its own where the system has no notification to give.
        except (OSError, RuntimeError):
            if not stop.wait(seconds):
                yield

    def _read_all(self) -> dict[str, _File]:
        return {path.name: file for path in definition_files(self._folder) if (file := self._read(path)) is not None}

    def _read(self, path: Path) -> _File | None:
        try:
            with path.open("rb") as content:
                digest = hashlib.sha256(content.read(LARGEST_BYTES + 1)).hexdigest()
        except FileNotFoundError:  # it went away since the folder was listed
            return None
        except OSError as error:
            digest = f"unreadable: {error.strerror}"
        before = self._files.get(path.name)
        if before is not None and before.digest == digest:
            return before
        try:
            loaded = load_definition(path, docker_kwargs_allowed=self._docker_kwargs_allowed)
        except DefinitionError as error:
            return _File(digest=digest, definition=None, problems=error.problems)
        return _File(digest=digest, definition=loaded.definition, warnings=loaded.warnings)

    def _remembered(self, warnings: list[Problem]) -> dict[str, FlowDefinition]:
        try:
            return self._last_good.load()
        except (OSError, ValueError) as error:
            warnings.append(self._about_state(f"cannot be used, so that no last good version is known: {error}"))
            return {}

    def _remember(self, in_force: Mapping[str, FlowDefinition], warnings: list[Problem]) -> None:
        if not self._remembers:
            return
        try:
            self._last_good.keep(in_force)
        except OSError as error:
            warnings.append(
                self._about_state(f"cannot be written, so that a restart forgets last good versions: {error.strerror}")
            )

    def _about_state(self, reason: str) -> Problem:
        return Problem(file=self._last_good.file, line=None, field="", reason=reason)

    def _problems(self, in_force: Mapping[str, FlowDefinition], conflicts: Mapping[str, str]) -> Iterator[Problem]:
        for name, file in self._files.items():
            path = self._folder / name
            problems = list(file.problems)
            if name in conflicts and file.definition is not None:
                problems.append(_conflict(path, self._folder / conflicts[name], file.definition.name, wins=False))
            yield from problems
            if problems and name in in_force:
                reason = f"its last good version, {in_force[name].name!r}, stays in force"
                yield Problem(file=path, line=None, field="", reason=reason)
            for loser, winner in conflicts.items():
                if winner == name:
                    yield _conflict(path, self._folder / loser, in_force[name].name, wins=True)

    def _take_over(
        self, in_force: Mapping[str, FlowDefinition], *, problems: list[Problem], warnings: list[Problem]
    ) -> CatalogueChange:
        old = self._snapshot
        new = {definition.name: definition for definition in in_force.values()}
        self._in_force = in_force
        self._snapshot = MappingProxyType(dict(sorted(new.items())))
        digests = {self._folder / name: file.digest for name, file in self._files.items()}
        told, self._reported = (
            self._reported,
            frozenset((problem, digests.get(problem.file, "")) for problem in (*problems, *warnings)),
        )
        fresh = {problem for problem, _ in self._reported - told}
        return CatalogueChange(
            added=tuple(sorted(new.keys() - old.keys())),
            changed=tuple(sorted(name for name in new.keys() & old.keys() if new[name] != old[name])),
            removed=tuple(sorted(old.keys() - new.keys())),
            problems=tuple(problem for problem in problems if problem in fresh),
            warnings=tuple(warning for warning in warnings if warning in fresh),
        )


class LastGoodVersions:
    """One JSON file below ``folder``: the name of a definition file, and the definition it last stood for."""

    def __init__(self, folder: Path) -> None:
        self.file = folder / _LAST_GOOD_NAME
        self._written: bytes | None = None
        self._seen = False

    @property
    def deleted(self) -> bool:
        """Whether somebody has deleted what was there: so a person says that definitions are to be forgotten."""
        return self._seen and not self.file.exists()

    def load(self) -> dict[str, FlowDefinition]:
        """Return what was kept; nothing if nothing ever was.

        Raises ``OSError`` where it cannot be read, ``ValueError`` where it is damaged or of an incompatible version.
        """
        try:
            content = self.file.read_bytes()
        except FileNotFoundError:
            return {}
        self._seen = True
        try:
            return _VERSIONS.validate_json(content)
        except ValidationError as error:
            raise ValueError(f"{error.error_count()} of its values are not what this version writes") from None

    def keep(self, versions: Mapping[str, FlowDefinition]) -> None:
        """Replace what was kept, whole or not at all. Raises ``OSError``."""
        plain = {name: definition.model_dump(mode="json") for name, definition in sorted(versions.items())}
        content = json.dumps(plain, indent=1).encode()
        if content == self._written and self.file.exists():
            return
        self.file.parent.mkdir(parents=True, exist_ok=True)
        unfinished = self.file.with_suffix(f".{os.getpid()}.tmp")
        with unfinished.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        unfinished.replace(self.file)
        self._written = content
        self._seen = True


def definition_files(folder: Path) -> list[Path]:
    """Return the files of a folder that are definitions, in alphabetical order. Raises ``OSError``."""
    return sorted(path for path in folder.iterdir() if _is_definition(path))


def settle(
    read: Mapping[str, FlowDefinition | None], *, in_force: Mapping[str, FlowDefinition]
) -> tuple[dict[str, FlowDefinition], dict[str, str]]:
    """Return which definition each file puts in force, and, for each file that may not have its name, who has it.

    ``read`` are the files that are there, with what they say now, None where that cannot be used; ``in_force`` is what
    each file stood for until now, and still does where it says nothing usable. Of several files with one name, the one
    that has it already keeps it, else the first in alphabetical order has it. Pure.
    """
    owners = {definition.name: file for file, definition in in_force.items()}
    wanted = {file: now or in_force[file] for file, now in read.items() if now is not None or file in in_force}
    settled: dict[str, FlowDefinition] = {}
    holders: dict[str, str] = {}
    conflicts: dict[str, str] = {}
    for file in sorted(wanted, key=lambda file: (owners.get(wanted[file].name) != file, file)):
        holder = holders.setdefault(wanted[file].name, file)
        if holder == file:
            settled[file] = wanted[file]
        else:
            conflicts[file] = holder
    for file in conflicts:
        before = in_force.get(file)
        if before is not None and holders.setdefault(before.name, file) == file:
            settled[file] = before
    return settled, conflicts


def _conflict(path: Path, other: Path, name: str, *, wins: bool) -> Problem:
    which = "which is not in force" if wins else "which is in force"
    reason = f"the name {name!r} is also that of {other}, {which}"
    return Problem(file=path, line=None, field="name", reason=reason, hint="give one of them another name")


def _folder_unreadable(folder: Path, error: OSError) -> Problem:
    return Problem(
        file=folder,
        line=None,
        field="",
        reason=f"cannot be read as the folder of flow definitions: {error.strerror}",
        hint="set FLOW_DIRECTORY to the folder that holds them; the definitions in force stay",
    )


def _folder_empty(folder: Path, last_good: Path) -> Problem:
    return Problem(
        file=folder,
        line=None,
        field="",
        reason="holds no definition any more; the definitions in force stay",
        hint=f"is a share not mounted? If it is meant, delete {last_good}",
    )


def _identity(folder: Path) -> tuple[int, int] | None:
    try:
        status = folder.stat()
    except OSError:
        return None
    return status.st_dev, status.st_ino


def _is_definition(path: Path) -> bool:
    return path.suffix in _SUFFIXES and not path.name.startswith(".") and path.is_file()
