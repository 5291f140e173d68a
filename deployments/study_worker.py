"""Prefect's process worker, less one way to die and one greed: ``python -m deployments.study_worker worker start …``.

A run that is retried within the second or so in which the process of its last attempt still ends comes back while it
holds its slot. Prefect's worker (3.8) takes that for an error and stops, and with it every run that it executes.

Prefect's worker asks at every poll for the first 200 runs in line, however few it could start. When a long queue waits
for slots, handing them out twice a second leaves the server little time for anything else.
"""

from __future__ import annotations

import warnings
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

import httpx
from prefect.cli import app
from prefect.client.schemas.responses import WorkerFlowRunResponse
from prefect.exceptions import PrefectHTTPStatusError
from prefect.workers.process import ProcessWorker

if TYPE_CHECKING:
    from prefect.client.schemas.objects import FlowRun

_LONGEST_ANSWER = 200  # Prefect's server refuses to hand out more

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # Prefect remarks that there are two workers of this type

    class StudyWorker(ProcessWorker):
        """Asks for no more runs than it has slots, and leaves one that still holds its slot to the next poll."""

        type = ProcessWorker.type

        async def _get_scheduled_flow_runs(self) -> list[WorkerFlowRunResponse]:
            slots = self.limiter.statistics()
            until = datetime.now(UTC) + timedelta(seconds=int(self._prefetch_seconds))
            free = slots.total_tokens - slots.borrowed_tokens
            body = {
                "work_queue_names": list(self._work_queues),
                "scheduled_before": str(until),
                # Runs that still hold a slot may be first in line. With none free the poll says that we are here.
                "limit": min(int(slots.total_tokens), _LONGEST_ANSWER) if free >= 1 else 0,
            }
            try:
                response = await self.client.request(
                    "POST",
                    "/work_pools/{name}/get_scheduled_flow_runs",
                    path_params={"name": self._work_pool_name},
                    json=body,
                )
            except PrefectHTTPStatusError as error:
                if error.response.status_code == httpx.codes.NOT_FOUND:
                    return []  # the pool is being made
                raise
            return WorkerFlowRunResponse.model_validate_list(response.json())

        async def _submit_scheduled_flow_runs(self, flow_run_response: list[WorkerFlowRunResponse]) -> list[FlowRun]:
            ending = self.limiter.statistics().borrowers
            return await super()._submit_scheduled_flow_runs(
                [entry for entry in flow_run_response if entry.flow_run.id not in ending]
            )


if __name__ == "__main__":
    app()
