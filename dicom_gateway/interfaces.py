"""What the gateway needs from the world, as promises. The member lives in ``prefect_trigger``."""

from __future__ import annotations

from collections.abc import Mapping
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

    def trigger(self, request: RunRequest, *, idempotency_key: str) -> str:
        """Create the flow run that ``request`` describes, unless it is there already, and return its id."""
        ...


class Definitions(Protocol):
    """The flow definitions in force; ``FlowCatalogue`` is one."""

    def snapshot(self) -> Mapping[str, FlowDefinition]:
        """Return the definitions in force at this moment, by name. Later changes do not show in it."""
        ...
