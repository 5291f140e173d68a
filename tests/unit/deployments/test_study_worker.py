"""What is built on private members of Prefect's worker: a release that changes them is told here."""

from __future__ import annotations

import inspect
from types import SimpleNamespace
from uuid import UUID, uuid4

import anyio
import pytest
from prefect.client.orchestration._work_pools.client import WorkPoolAsyncClient
from prefect.workers.base import BaseWorker
from prefect.workers.process import ProcessWorker

from deployments.study_worker import StudyWorker


def test_prefects_worker_still_has_the_member_that_is_overridden():
    overridden = BaseWorker._submit_scheduled_flow_runs

    assert list(inspect.signature(overridden).parameters) == ["self", "flow_run_response"]
    assert inspect.iscoroutinefunction(overridden)
    assert "acquire_on_behalf_of_nowait(flow_run.id)" in inspect.getsource(overridden)


def test_prefects_worker_still_asks_as_we_do_but_for_the_limit():
    overridden = BaseWorker._get_scheduled_flow_runs

    assert list(inspect.signature(overridden).parameters) == ["self"]
    assert inspect.iscoroutinefunction(overridden)
    source = inspect.getsource(overridden)
    for argument in (
        "get_scheduled_flow_runs_for_work_pool(",
        "work_pool_name=self._work_pool_name",
        "seconds=int(self._prefetch_seconds)",
        "work_queue_names=list(self._work_queues)",
    ):
        assert argument in source
    asked = inspect.getsource(WorkPoolAsyncClient.get_scheduled_flow_runs_for_work_pool)
    assert "limit" not in asked, "Prefect's client has a limit of its own now: use it"


@pytest.mark.parametrize(
    ("slots", "held", "limit"), [(4, 0, 4), (4, 3, 4), (4, 4, 0), (1, 0, 1), (1000, 0, 200), (2, 1, 2)]
)
def test_no_more_runs_are_asked_for_than_there_are_slots_and_none_while_none_is_free(slots, held, limit):
    asked = []

    class Client:
        async def request(self, method, path, *, path_params, json):
            asked.append((method, path, path_params, json))
            return SimpleNamespace(json=list)

    async def poll() -> list[object]:
        worker = StudyWorker(work_pool_name="cpu", work_queues=["priority-5"])
        worker._client = Client()
        worker._limiter = anyio.CapacityLimiter(slots)
        for _ in range(held):
            worker._limiter.acquire_on_behalf_of_nowait(uuid4())
        return await worker._get_scheduled_flow_runs()

    assert anyio.run(poll) == []
    ((method, path, path_params, body),) = asked
    assert (method, path.format(**path_params)) == ("POST", "/work_pools/cpu/get_scheduled_flow_runs")
    assert (body["limit"], body["work_queue_names"]) == (limit, ["priority-5"])


def test_a_run_that_still_holds_its_slot_is_left_to_the_next_poll(monkeypatch: pytest.MonkeyPatch):
    submitted: list[UUID] = []

    async def submit(_self: object, flow_run_response: list[SimpleNamespace]) -> list[object]:
        submitted.extend(entry.flow_run.id for entry in flow_run_response)
        return []

    monkeypatch.setattr(ProcessWorker, "_submit_scheduled_flow_runs", submit)
    ending, new = uuid4(), uuid4()

    async def poll() -> None:
        worker = StudyWorker(work_pool_name="cpu")
        worker._limiter = anyio.CapacityLimiter(2)
        worker._limiter.acquire_on_behalf_of_nowait(ending)
        await worker._submit_scheduled_flow_runs(
            [SimpleNamespace(flow_run=SimpleNamespace(id=run_id)) for run_id in (ending, new)]
        )

    anyio.run(poll)

    assert submitted == [new]
