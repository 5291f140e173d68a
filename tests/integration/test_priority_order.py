"""One slot, many waiting runs, our worker on a real Prefect server; what it starts is a command that takes no time."""

from __future__ import annotations

import copy
import random
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from uuid import UUID

import anyio
import httpx
import pytest
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.actions import WorkPoolUpdate

from deployments.apply import bring_into_step
from deployments.pool_template import JOB_TEMPLATE
from deployments.successor import place
from flows_engine.definition.naming import PRIORITIES, work_queue
from flows_engine.worker.study_worker import StudyWorker
from tests.factories import run_parameters
from tests.fakes.definitions import flow

pytestmark = pytest.mark.prefect

FLOWS = [flow(name, {"Modality": "CT"}) for name in ("Head", "Neck", "Pelvis")]
PATIENCE_SECONDS = 150


class OneSlot:
    """A worker that takes one run at a time, and the order in which they begin."""

    def __init__(self, client: SyncPrefectClient, *, api_url: str, folder: Path) -> None:
        self.client = client
        self.api = httpx.Client(base_url=api_url, timeout=60)
        self._deployments = {deployment.name: deployment.id for deployment in client.read_deployments()}
        self._begun, self._gate, self.ended = folder / "begun", folder / "gate", folder / "ended"
        self._worker: StudyWorker | None = None
        self._begun.touch()

    def wait_in_line(self, *priorities: int, flow_name: str = "Head", busy: bool = False) -> list[UUID]:
        """Make runs, in this order, which note that they begin; ``busy`` ones keep the slot until ``free_slot``."""
        command = f"echo $PREFECT__FLOW_RUN_ID >> {self._begun}"
        if busy:
            command += f"; until [ -e {self._gate} ]; do sleep 0.02; done; touch {self.ended}"
        runs = [
            {
                "name": f"{flow_name} {priority}",
                "parameters": run_parameters(),
                "enforce_parameter_schema": False,  # which takes most of the time in which a run is made
                "work_queue_name": work_queue(priority),
                "job_variables": {"command": f"sh -c '{command}'"},
            }
            for priority in priorities
        ]
        made = self.api.post(f"/deployments/{self._deployments[flow_name]}/create_flow_run/bulk", json=runs)
        return [UUID(result["flow_run_id"]) for result in made.raise_for_status().json()["results"]]

    def pause(self, path: str, *, paused: bool) -> None:
        """Pause or resume a pool or a queue, as the UI does."""
        self.api.patch(f"/work_pools/{path}", json={"is_paused": paused}).raise_for_status()

    def free_slot(self) -> None:
        self._gate.touch()

    def begun(self) -> list[UUID]:
        """Return the runs that have begun, in their order."""
        return [UUID(line) for line in self._begun.read_text().split()]

    async def begins(self, count: int) -> list[UUID]:
        """Return what has begun as soon as that are ``count``. The worker looks for work whenever its slot is free."""
        assert self._worker is not None
        with anyio.fail_after(PATIENCE_SECONDS):
            while len(self.begun()) < count:
                if self._worker.limiter.available_tokens:
                    await self._worker.get_and_submit_flow_runs()
                await anyio.sleep(0.02)
        return self.begun()

    async def finds_nothing(self) -> None:
        """Return when the worker has nothing in hand any more, and has seen that there is nothing it may take."""
        assert self._worker is not None
        with anyio.fail_after(PATIENCE_SECONDS):
            while self._worker.limiter.borrowed_tokens:
                await anyio.sleep(0.02)
            assert await self._worker.get_and_submit_flow_runs() == []

    def run(self, scene: Callable[[], Awaitable[None]]) -> None:
        async def with_worker() -> None:
            async with StudyWorker(work_pool_name="cpu", limit=1) as worker:
                self._worker = worker
                try:
                    await scene()
                finally:
                    self.free_slot()

        anyio.run(with_worker)


@pytest.fixture
def slot(empty_prefect: str, tmp_path: Path) -> Iterator[OneSlot]:
    with get_client(sync_client=True) as client:
        bring_into_step(client, FLOWS)
        # The pools that we make leave no choice of the command.
        template = copy.deepcopy(JOB_TEMPLATE)
        template["job_configuration"]["command"] = "{{ command }}"
        template["variables"]["properties"]["command"] = {"type": "string"}
        client.update_work_pool("cpu", WorkPoolUpdate(base_job_template=template))
        slot = OneSlot(client, api_url=empty_prefect, folder=tmp_path)
        yield slot
        client.update_work_pool("cpu", WorkPoolUpdate(base_job_template=JOB_TEMPLATE))
        for path in ("cpu", "cpu/queues/priority-5"):
            slot.pause(path, paused=False)
        for deployment in client.read_deployments():
            client.delete_deployment(deployment.id)  # and at once, with it, all its runs that wait
        client.update_work_pool("cpu", WorkPoolUpdate(base_job_template=JOB_TEMPLATE))


def test_thirty_runs_of_several_flows_begin_by_priority_and_then_by_arrival(slot: OneSlot):
    priorities = [*PRIORITIES] * 5
    random.Random(7).shuffle(priorities)

    async def scene() -> None:
        (busy,) = slot.wait_in_line(0, busy=True)
        await slot.begins(1)
        waiting: list[tuple[int, UUID]] = []
        for first in range(0, len(priorities), 5):
            some = priorities[first : first + 5]
            made = slot.wait_in_line(*some, flow_name=FLOWS[first % 3].name)
            waiting += zip(some, made, strict=True)
        # Somebody is in a hurry: the run goes in among those of its new priority, as it arrived.
        hurried = priorities.index(0)
        moved = place(slot.client, slot.client.read_flow_run(waiting[hurried][1]), priority=4)
        waiting[hurried] = (4, moved.run.id)
        await slot.begins(1)
        assert not slot.ended.exists()
        slot.free_slot()

        begun = await slot.begins(1 + len(waiting))

        # A stable order: those of one priority stay as they arrived.
        assert begun == [busy, *(run for _, run in sorted(waiting, key=lambda one: -one[0]))]
        assert slot.ended.exists(), "what ran was stopped"

    slot.run(scene)


def test_a_run_that_comes_behind_more_than_a_worker_is_told_of_is_next(slot: OneSlot):
    async def scene() -> None:
        (busy,) = slot.wait_in_line(1, busy=True)
        await slot.begins(1)
        crowd = slot.wait_in_line(*[0] * 20)
        (urgent,) = slot.wait_in_line(5, flow_name="Neck")
        # Prefect tells a worker of 200 at most, here of ten.
        told = slot.api.post("/work_pools/cpu/get_scheduled_flow_runs", json={"limit": 10}).raise_for_status().json()
        assert [UUID(entry["flow_run"]["id"]) for entry in told] == [urgent, *crowd[:9]]
        slot.free_slot()

        assert await slot.begins(4) == [busy, urgent, *crowd[:2]]

    slot.run(scene)


def test_a_pause_holds_what_is_paused_and_nothing_else(slot: OneSlot):
    async def scene() -> None:
        slot.pause("cpu/queues/priority-5", paused=True)
        (held,) = slot.wait_in_line(5)
        (other,) = slot.wait_in_line(2)
        assert await slot.begins(1) == [other]
        await slot.finds_nothing()
        slot.pause("cpu/queues/priority-5", paused=False)
        assert await slot.begins(2) == [other, held]

        slot.pause("cpu", paused=True)
        (last,) = slot.wait_in_line(5)
        await slot.finds_nothing()
        slot.pause("cpu", paused=False)
        assert await slot.begins(3) == [other, held, last]

    slot.run(scene)
