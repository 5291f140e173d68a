"""What is built on private members of Prefect's worker: a release that changes them is told here."""

from __future__ import annotations

import inspect
from types import SimpleNamespace
from typing import Any
from uuid import UUID, uuid4

import anyio
import pytest
from prefect.workers.base import BaseWorker
from prefect.workers.process import ProcessWorker

from deployments.study_worker import StudyWorker, startable


def test_prefects_worker_still_has_the_member_that_is_overridden():
    overridden = BaseWorker._submit_scheduled_flow_runs

    assert list(inspect.signature(overridden).parameters) == ["self", "flow_run_response"]
    assert inspect.iscoroutinefunction(overridden)
    assert "acquire_on_behalf_of_nowait(flow_run.id)" in inspect.getsource(overridden)


class _Server:
    """As much of Prefect's client as a poll asks: limits, queues, and what waits in each of them."""

    def __init__(self, limits: list[SimpleNamespace], **queues: list[SimpleNamespace]) -> None:
        self._limits = limits
        self._queues = queues

    async def read_global_concurrency_limits(self, *, limit: int, offset: int) -> list[SimpleNamespace]:
        return self._limits[offset : offset + limit]

    async def read_work_queues(self, work_pool_name: str) -> list[SimpleNamespace]:
        return [SimpleNamespace(name=name, priority=number) for number, name in enumerate(self._queues, start=1)]

    async def get_scheduled_flow_runs_for_work_pool(
        self, pool: str, *, work_queue_names: list[str], scheduled_before: object
    ) -> list[SimpleNamespace]:
        return self._queues[work_queue_names[0]]


@pytest.fixture
def submitted(monkeypatch: pytest.MonkeyPatch) -> list[UUID]:
    """What reaches Prefect's own worker."""
    runs: list[UUID] = []

    async def submit(_self: object, flow_run_response: list[SimpleNamespace]) -> list[object]:
        runs.extend(entry.flow_run.id for entry in flow_run_response)
        return []

    monkeypatch.setattr(ProcessWorker, "_submit_scheduled_flow_runs", submit)
    return runs


def waiting(deployment_id: UUID | None = None, run_id: UUID | None = None) -> Any:
    return SimpleNamespace(flow_run=SimpleNamespace(id=run_id or uuid4(), deployment_id=deployment_id or uuid4()))


def limited(deployment_id: UUID, *, limit: int, active: int) -> SimpleNamespace:
    return SimpleNamespace(name=f"deployment:{deployment_id}", limit=limit, active_slots=active, active=True)


def poll(server: _Server, *found: SimpleNamespace, in_hand: tuple[UUID, ...] = (), slots: int = 2) -> None:
    async def run() -> None:
        worker = StudyWorker(work_pool_name="cpu")
        worker._limiter = anyio.CapacityLimiter(slots)
        worker._client = server
        for run_id in in_hand:
            worker._limiter.acquire_on_behalf_of_nowait(run_id)
        await worker._submit_scheduled_flow_runs(list(found))

    anyio.run(run)


def test_a_run_that_still_holds_its_slot_is_left_to_the_next_poll(submitted: list[UUID]):
    ending, new = waiting(), waiting()

    poll(_Server([]), ending, new, in_hand=(ending.flow_run.id,))

    assert submitted == [new.flow_run.id]


def test_a_flow_that_has_reached_its_limit_leaves_the_slots_to_others(submitted: list[UUID]):
    full, free = uuid4(), uuid4()
    limits = [
        SimpleNamespace(name="somebody's", limit=1, active_slots=1, active=True),
        limited(full, limit=2, active=2),
        limited(free, limit=3, active=1),
    ]
    runs = [waiting(full), waiting(free), waiting(), waiting(free), waiting(free), waiting(full)]

    poll(_Server(limits), *runs)

    assert submitted == [run.flow_run.id for run in (runs[1], runs[2], runs[3])]


def test_a_limit_is_found_among_many(submitted: list[UUID]):
    full = uuid4()
    limits = [limited(uuid4(), limit=1, active=0) for _ in range(250)]

    poll(_Server([*limits, limited(full, limit=1, active=1)]), waiting(full))

    assert submitted == []


def test_a_run_in_hand_that_the_server_has_not_counted_yet_takes_its_slot():
    flow, other = uuid4(), uuid4()
    in_hand, next_one, third = waiting(flow), waiting(flow), waiting(other)

    def chosen(limit: int) -> list[Any]:
        return list(startable([in_hand, next_one, third], in_hand={in_hand.flow_run.id}, free_slots={flow: limit}))

    assert chosen(1) == [third]
    assert chosen(2) == [next_one, third]


def test_a_backlog_that_fills_the_poll_does_not_hide_what_waits_in_other_queues(submitted: list[UUID]):
    full = uuid4()
    backlog = [waiting(full) for _ in range(200)]
    behind = waiting()

    poll(_Server([limited(full, limit=1, active=1)], high=backlog, low=[behind]), *backlog)

    assert submitted == [behind.flow_run.id]


def test_the_server_is_asked_nothing_while_all_slots_are_taken(submitted: list[UUID]):
    busy, run = uuid4(), waiting()

    poll(None, run, in_hand=(busy,), slots=1)  # type: ignore[arg-type]

    assert submitted == [run.flow_run.id]
