"""Prefect's process worker, less one way to die: ``python -m deployments.study_worker worker start …``.

A run that is retried within the second or so in which the process of its last attempt still ends comes back while it
holds its slot. Prefect's worker (3.8) takes that for an error and stops, and with it every run that it executes.
"""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING

from prefect.cli import app
from prefect.workers.process import ProcessWorker

if TYPE_CHECKING:
    from prefect.client.schemas.objects import FlowRun, WorkerFlowRunResponse

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # Prefect remarks that there are two workers of this type

    class StudyWorker(ProcessWorker):
        """Leaves a run that still holds its slot to the next poll."""

        type = ProcessWorker.type

        async def _submit_scheduled_flow_runs(self, flow_run_response: list[WorkerFlowRunResponse]) -> list[FlowRun]:
            ending = self.limiter.statistics().borrowers
            return await super()._submit_scheduled_flow_runs(
                [entry for entry in flow_run_response if entry.flow_run.id not in ending]
            )


if __name__ == "__main__":
    app()
