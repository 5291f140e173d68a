"""What the engine needs from the world, as promises. The members live in ``docker_runner`` and ``destinations``."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol


@dataclass(frozen=True, kw_only=True)
class BindMount:
    """A folder of this host as a container sees it: the very folder, or, on another host, a copy of it."""

    source: Path
    target: str
    read_only: bool
    is_kept: bool = True
    """Whether what the container writes there is looked at afterwards. Of a folder that is read-only nothing is."""


@dataclass(frozen=True, kw_only=True)
class ContainerSpec:
    """All that a container runner is told: nothing about DICOM, nothing about Prefect.

    ``options`` are docker-py ``containers.create`` arguments that were checked against the allow-list when the
    definition was read. ``timeout_seconds`` counts from the start of the container.
    """

    name: str
    image: str
    mounts: tuple[BindMount, ...]
    labels: dict[str, str]
    timeout_seconds: float
    pull: bool
    network: bool
    gpu_ids: tuple[str, ...] = ()
    options: dict[str, object] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class ContainerResult:
    """How a container ended by itself. ``log_tail`` is its last lines, oldest first, decoded."""

    exit_code: int
    image_digest: str
    started_at: float
    duration_seconds: float
    log_tail: tuple[str, ...]
    engine_version: str = ""
    peak_memory_bytes: int | None = None
    """The most memory that the engine saw it take, in looks a second apart; None where it saw none."""


class ContainerRunner(Protocol):
    """Runs containers to their end.

    Promises: the container is gone when ``run`` returns or raises, whatever the reason (a signal that Python turns into
    an exception included); ``on_line`` gets each line of stdout and of stderr once, in the order of its stream, without
    its line end, while the container runs (control characters escaped, an endless line cut, an endless log bounded:
    each cut says so); no line after ``run`` has returned. A container of the same name that an earlier, killed process
    left behind is removed first. What a container that ended by itself left in a mount that is kept lies in the folder
    of that mount, whole, when ``run`` returns. ``on_notice`` gets what a person should know and the container cannot
    say: that a newer image could not be pulled and the one in the engine is used. Where ``is_halted`` begins to hold,
    the container is stopped as it is by an exception, and ``RunHaltedError`` is raised. ``watch`` is called several
    times a second while the container runs, and once more where it ended with a code other than 0: a
    ``DiskFilledError`` that it raises kills the container at once, and is raised. A result is that of a container which
    ended by itself: one that somebody else stopped has none, whatever its exit code.

    Raises ``ImageUnavailableError``, ``EngineUnavailableError``, ``ModelInterruptedError``, ``ImagePullFailedError``,
    ``NoSpaceError`` (a retry may help after these four), ``ModelTimedOutError``, ``DiskFilledError``,
    ``EngineMisconfiguredError``, ``WorkspaceError``, ``ContainerRefusedError`` (the engine will not have this
    specification). A non-zero exit code is a result, not an error.
    """

    def run(
        self,
        spec: ContainerSpec,
        *,
        on_line: Callable[[str], None],
        on_notice: Callable[[str], None],
        is_halted: Callable[[], bool] = lambda: False,
        watch: Callable[[], None] = lambda: None,
    ) -> ContainerResult:
        """Run a container and return how it ended."""
        ...

    def find_all(self, *, label: str, value: str) -> tuple[Mapping[str, str], ...]:
        """Return all labels of each container that carries ``label=value``, whether it runs or not."""
        ...

    def remove_all(self, *, label: str, value: str) -> int:
        """Kill and remove every container that carries ``label=value``; return how many there were."""
        ...


@dataclass(frozen=True, kw_only=True)
class Rejection:
    """One instance that a destination did not take. ``status`` is the DIMSE status, None if none was answered."""

    path: Path
    status: int | None
    reason: str


@dataclass(frozen=True, kw_only=True)
class DeliveryReport:
    """What became of the files of one delivery."""

    delivered: tuple[Path, ...]
    rejected: tuple[Rejection, ...]


class Destination(Protocol):
    """Takes files, one by one.

    Promises: ``on_delivered`` is called for a file only after the receiver answered Success or a Warning that means it
    is stored (PS3.4 B.2.3), before the next is sent, so that a caller can write it down; a file that is not DICOM is
    never sent. Raises ``DestinationUnavailableError`` where the receiver cannot be reached or went away: what had been
    delivered has been reported through ``on_delivered`` by then.
    """

    @property
    def name(self) -> str:
        """What people call it, for messages."""
        ...

    def deliver(self, files: Sequence[Path], *, on_delivered: Callable[[Path], None]) -> DeliveryReport:
        """Send ``files`` and return what became of each."""
        ...
