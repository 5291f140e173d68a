"""Prefect's process worker, less two of its ways: ``python -m deployments.study_worker worker start …``.

A run that is retried within the second or so in which the process of its last attempt still ends comes back while it
holds its slot. Prefect's worker (3.8) takes that for an error and stops, and with it every run that it executes.

The end of a killed process is reported twice by Prefect's worker (3.8): at once, and again when the run's hooks are
done, seconds later. A person who retries the run in between would find the retry undone by the second report.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any
from uuid import UUID

from prefect.cli import app
from prefect.workers.process import ProcessWorker

if TYPE_CHECKING:
    from prefect.client.orchestration import PrefectClient
    from prefect.client.schemas.objects import FlowRun, State, WorkerFlowRunResponse


def has_ended_since(states: Sequence[State[Any]], submitted_as: UUID | None) -> bool:
    """Tell whether an attempt of a run, which a worker took in the state ``submitted_as``, has been reported as over.

    ``states`` are all states of the run, oldest first. An attempt whose beginning is not among them has not.
    """
    ids = [state.id for state in states]
    if submitted_as not in ids:
        return False
    return any(state.is_final() for state in states[ids.index(submitted_as) + 1 :])


with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # Prefect remarks that there are two workers of this type

    class StudyWorker(ProcessWorker):
        """Leaves a run that still holds its slot to the next poll, and reports the end of an attempt once."""

        type = ProcessWorker.type

        async def _submit_scheduled_flow_runs(self, flow_run_response: list[WorkerFlowRunResponse]) -> list[FlowRun]:
            ending = self.limiter.statistics().borrowers
            return await super()._submit_scheduled_flow_runs(
                [entry for entry in flow_run_response if entry.flow_run.id not in ending]
            )

        async def _propose_crashed_state(
            self, flow_run: FlowRun, message: str, client: PrefectClient | None = None
        ) -> None:
            try:
                states = await (client or self.client).read_flow_run_states(flow_run.id)
            except Exception:  # noqa: BLE001 - Prefect's own way knows what to do about a server that does not answer
                states = []
            if not has_ended_since(states, flow_run.state_id):
                await super()._propose_crashed_state(flow_run, message, client=client)


if __name__ == "__main__":
    app()
