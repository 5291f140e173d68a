"""Prefect's process worker, less four of its ways. What is left is our worker's, in ``worker.py``.

A run that is retried within the second or so in which the process of its last attempt still ends comes back while it
holds its slot. Prefect's worker (3.8) takes that for an error and stops, and with it every run that it executes.

The end of a killed process is reported twice by Prefect's worker (3.8): at once, and again when the run's hooks are
done, seconds later. A person who retries the run in between would find the retry undone by the second report.

Prefect's worker asks at every poll for the first 200 runs in line, however few it could start. When a long queue waits
for slots, handing them out twice a second leaves the server little time for anything else.

A run of a flow that has reached its ``concurrency_limit`` is offered to Prefect's server all the same, which sends it
to the back for half a minute; many such runs keep the worker's free slots from all others. Here it waits in its place.
"""

from __future__ import annotations

from abc import ABC
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from itertools import count
from typing import TYPE_CHECKING, Any, Final
from uuid import UUID

import httpx
from prefect.client.schemas.filters import (
    FlowRunFilter,
    FlowRunFilterId,
    FlowRunFilterState,
    FlowRunFilterStateType,
)
from prefect.client.schemas.objects import StateType
from prefect.client.schemas.responses import WorkerFlowRunResponse
from prefect.exceptions import PrefectHTTPStatusError
from prefect.workers.process import ProcessWorker

if TYPE_CHECKING:
    from prefect.client.orchestration import PrefectClient
    from prefect.client.schemas.objects import FlowRun, State

_PAGE: Final = 200
"""The longest list that Prefect's server hands out."""
_UNLIMITED: Final = 100_000
# How Prefect's server names the limit of a deployment.
_OF_A_DEPLOYMENT: Final = "deployment:"


def has_ended_since(states: Sequence[State[Any]], submitted_as: UUID | None) -> bool:
    """Tell whether an attempt of a run, which a worker took in the state ``submitted_as``, has been reported as over.

    ``states`` are all states of the run, oldest first. An attempt whose beginning is not among them has not.
    """
    ids = [state.id for state in states]
    if submitted_as not in ids:
        return False
    return any(state.is_final() for state in states[ids.index(submitted_as) + 1 :])


def startable(
    waiting: Iterable[WorkerFlowRunResponse], *, in_hand: Collection[object], free_slots: Mapping[UUID, int]
) -> Iterator[WorkerFlowRunResponse]:
    """Yield, in their order, the runs that can be started now: not ``in_hand``, and within the limit of their flow.

    ``free_slots`` has, for each deployment with a limit, how many more of its runs may begin.
    """
    left = dict(free_slots)
    for entry in waiting:
        deployment_id = entry.flow_run.deployment_id
        if entry.flow_run.id in in_hand:
            continue
        if deployment_id in left:
            if left[deployment_id] < 1:
                continue
            left[deployment_id] -= 1
        yield entry


class StudyWorker(ProcessWorker, ABC):  # an ABC is no worker type of its own to Prefect
    """Asks for no more runs than it has slots, and reports the end of an attempt once.

    A run that still holds its slot, or whose flow has reached its limit, is left to the next poll.
    """

    def __init__(self, work_pool_name: str, *, limit: int | None = None, **options: Any) -> None:  # noqa: ANN401
        # Who holds a slot is in hand: there have to be slots even where their number does not matter.
        super().__init__(work_pool_name, limit=_UNLIMITED if limit is None else limit, **options)

    async def _get_scheduled_flow_runs(self) -> list[WorkerFlowRunResponse]:
        slots = self.limiter.statistics()
        free = slots.total_tokens - slots.borrowed_tokens
        # Runs that still hold a slot may be first in line. With none free the poll says that we are here.
        return await self._in_line(list(self._work_queues), most=int(slots.total_tokens) if free >= 1 else 0)

    async def _submit_scheduled_flow_runs(self, flow_run_response: list[WorkerFlowRunResponse]) -> list[FlowRun]:
        in_hand = self.limiter.statistics().borrowers
        # Prefect's worker takes none while all of its slots are taken.
        look = bool(flow_run_response) and self.limiter.available_tokens > 0
        free = await self._free_slots_by_deployment(in_hand) if look else {}
        chosen = list(startable(flow_run_response, in_hand=in_hand, free_slots=free))
        if free and not chosen and len(flow_run_response) >= min(self.limiter.total_tokens, _PAGE):
            # Those behind the first in line may be of a flow that has slots left.
            chosen = list(startable(await self._first_of_each_queue(), in_hand=in_hand, free_slots=free))
        return await super()._submit_scheduled_flow_runs(chosen)

    async def _free_slots_by_deployment(self, in_hand: Collection[object]) -> dict[UUID, int]:
        """Return how many more runs each deployment may have, of those that have a limit."""
        # Asked before the limits: a run that begins in between is counted twice then, and never not at all.
        not_counted = await self._not_counted_yet(in_hand)
        free: dict[UUID, int] = {}
        for page in count():
            limits = await self.client.read_global_concurrency_limits(limit=_PAGE, offset=page * _PAGE)
            for limit in limits:
                if limit.active and limit.name.startswith(_OF_A_DEPLOYMENT):
                    free[UUID(limit.name.removeprefix(_OF_A_DEPLOYMENT))] = limit.limit - limit.active_slots
            if len(limits) < _PAGE:
                break
        for deployment_id in not_counted:
            if deployment_id in free:
                free[deployment_id] -= 1
        return free

    async def _not_counted_yet(self, in_hand: Collection[object]) -> list[UUID | None]:
        """Return the deployments of those runs in hand that still wait, to the server: they will take a slot each."""
        if not in_hand:
            return []
        wanted = FlowRunFilter(
            id=FlowRunFilterId(any_=[UUID(str(run_id)) for run_id in in_hand]),
            state=FlowRunFilterState(type=FlowRunFilterStateType(any_=[StateType.SCHEDULED])),
        )
        return [run.deployment_id for run in await self.client.read_flow_runs(flow_run_filter=wanted)]

    async def _first_of_each_queue(self) -> list[WorkerFlowRunResponse]:
        """Return what waits in each queue, as many as the server tells of one."""
        queues = await self.client.read_work_queues(work_pool_name=self._work_pool_name)
        found: list[WorkerFlowRunResponse] = []
        for queue in sorted(queues, key=lambda queue: queue.priority or 0):
            if not self._work_queues or queue.name in self._work_queues:
                found += await self._in_line([queue.name], most=_PAGE)
        return found

    async def _in_line(self, queues: list[str], *, most: int) -> list[WorkerFlowRunResponse]:
        """Return at most ``most`` of the runs that wait in ``queues``, or in all where none is named."""
        until = datetime.now(UTC) + timedelta(seconds=int(self._prefetch_seconds))
        body = {"work_queue_names": queues, "scheduled_before": str(until), "limit": min(most, _PAGE)}
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

    async def _propose_crashed_state(
        self, flow_run: FlowRun, message: str, client: PrefectClient | None = None
    ) -> None:
        try:
            states = await (client or self.client).read_flow_run_states(flow_run.id)
        except Exception:  # noqa: BLE001 - Prefect's own way knows what to do about a server that does not answer
            states = []
        if not has_ended_since(states, flow_run.state_id):
            await super()._propose_crashed_state(flow_run, message, client=client)
