"""What the gateway needs from the world, as promises. The member lives in ``prefect_trigger``."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Protocol

from flows_engine.definition.schema import FlowDefinition
from flows_engine.handoff.run_request import RunRequest


class RunTrigger(Protocol):
    """Creates flow runs.

    Promises: when ``trigger`` returns, the run exists and survives a restart of every process. The same
    ``idempotency_key`` always gives the same run, whoever asks and however often, a caller that was killed before it
    saw the answer included. May be called from several threads at once.

    Raises ``TriggerUnavailableError`` where no call works now (no answer, no access), ``FlowUnavailableError`` where
    none for this flow does, ``NotDeployedError`` among them, and ``TriggerRefusedError`` where this very call never
    will. After an error the run may or may not exist; asking again is safe.
    """

    def trigger(self, request: RunRequest, *, idempotency_key: str, queue: str = "", tags: Sequence[str] = ()) -> str:
        """Create the flow run that ``request`` describes, unless it is there already, and return its id.

        It waits in ``queue``, by default that of its definition's priority, and carries ``tags`` beside its own.
        """
        ...


@dataclass(frozen=True, kw_only=True)
class StudyRun:
    """One flow run on a study, as Prefect remembers it."""

    run_id: str
    flow: str
    digest: str
    """That of the definition that it was made with; empty where that cannot be read any more."""
    state: str
    is_over: bool
    created_at: datetime
    request_ids: frozenset[str]
    """The requests for reprocessing that made it; at most one."""
    was_withdrawn: bool
    """Whether it was cancelled before it began, because the request that made it was cancelled."""


class RunHistory(Protocol):
    """The runs that Prefect still knows of; people may have deleted any of them.

    Raises ``TriggerUnavailableError`` where Prefect does not answer.
    """

    def runs_of(self, study_id: str, *, flows: Collection[str]) -> Sequence[StudyRun]:
        """Return all runs of ``flows`` on a study, whoever made them, and whatever became of them."""
        ...

    def waiting(self, request_id: str) -> int:
        """Return how many of the runs that a request made have not begun."""
        ...

    def withdraw(self, request_id: str) -> int:
        """Cancel those of the runs that a request made which have not begun, and return how many there were."""
        ...


class Definitions(Protocol):
    """The flow definitions in force; ``FlowCatalogue`` is one."""

    def snapshot(self) -> Mapping[str, FlowDefinition]:
        """Return the definitions in force at this moment, by name. Later changes do not show in it."""
        ...
