"""The states of a run that Prefect does not know by itself, shown while they are true."""

from __future__ import annotations

from uuid import UUID

from prefect import runtime
from prefect.client.orchestration import get_client
from prefect.client.schemas.objects import State, StateType

from flows_engine.definition.state_codes import RunningState


def announce(name: RunningState) -> None:
    """Show the run, which goes on running, under another name: models are done (Finished), or output is being sent."""
    with get_client(sync_client=True) as client:
        # Not by force: a run that is being cancelled stays Cancelling.
        client.set_flow_run_state(UUID(str(runtime.flow_run.id)), State(type=StateType.RUNNING, name=name))
