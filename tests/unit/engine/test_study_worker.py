"""What is built on private members of Prefect's worker: a release that changes them is told here."""

from __future__ import annotations

import inspect
from collections.abc import Iterable
from types import SimpleNamespace
from typing import Any
from uuid import UUID, uuid4

import anyio
import pytest
from prefect.client.orchestration._work_pools.client import WorkPoolAsyncClient
from prefect.client.schemas.filters import FlowRunFilter
from prefect.client.schemas.objects import State, StateType
from prefect.states import AwaitingRetry, Completed, Crashed, Failed, Pending, Running, Scheduled
from prefect.workers.base import BaseWorker
from prefect.workers.process import ProcessWorker

from flows_engine.worker.study_worker import StudyWorker, has_ended_since


def test_prefects_worker_still_has_the_member_that_is_overridden():
    overridden = BaseWorker._submit_scheduled_flow_runs

    assert list(inspect.signature(overridden).parameters) == ["self", "flow_run_response"]
    assert inspect.iscoroutinefunction(overridden)
    assert "acquire_on_behalf_of_nowait(flow_run.id)" in inspect.getsource(overridden)


def test_prefects_worker_still_reports_the_end_of_a_process_by_the_member_that_is_overridden():
    overridden = BaseWorker._propose_crashed_state

    assert list(inspect.signature(overridden).parameters) == ["self", "flow_run", "message", "client"]
    assert inspect.iscoroutinefunction(overridden)
    assert "self._propose_crashed_state(" in inspect.getsource(BaseWorker._submit_run_and_capture_errors)
    assert ProcessWorker._propose_crashed_state is overridden


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


class _Server:
    """As much of Prefect's client as a poll asks: limits, queues, and what waits in each of them."""

    def __init__(
        self, limits: list[SimpleNamespace], begins: Iterable[SimpleNamespace] = (), **queues: list[SimpleNamespace]
    ) -> None:
        self._limits = limits
        self._begins = [entry.flow_run for entry in begins]
        self._queues = queues

    async def read_flow_runs(self, *, flow_run_filter: FlowRunFilter) -> list[SimpleNamespace]:
        """Return the runs that are asked for, as far as they have not begun for the server."""
        assert flow_run_filter.state.type.any_ == [StateType.SCHEDULED]
        return [run for run in self._begins if run.id in flow_run_filter.id.any_]

    async def read_global_concurrency_limits(self, *, limit: int, offset: int) -> list[SimpleNamespace]:
        return self._limits[offset : offset + limit]

    async def read_work_queues(self, work_pool_name: str) -> list[SimpleNamespace]:
        return [SimpleNamespace(name=name, priority=number) for number, name in enumerate(self._queues, start=1)]

    async def in_line(self, queues: list[str], *, most: int) -> list[SimpleNamespace]:
        return self._queues[queues[0]][:most]


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
        worker._in_line = getattr(server, "in_line", None)
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


@pytest.mark.parametrize(("limit", "count"), [(1, 0), (2, 1)])
def test_a_run_in_hand_that_the_server_has_not_counted_yet_takes_its_slot(submitted: list[UUID], limit, count):
    flow = uuid4()
    in_hand, next_one, other = waiting(flow), waiting(flow), waiting()

    poll(
        # It is not among the first in line that were asked for, since others are due earlier.
        _Server([limited(flow, limit=limit, active=0)], begins=[in_hand, waiting(flow)]),
        next_one,
        other,
        in_hand=(in_hand.flow_run.id,),
    )

    assert submitted == [next_one.flow_run.id, other.flow_run.id][1 - count :]


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


BEFORE = [Scheduled(), Pending(), Running(), Failed(), AwaitingRetry()]


@pytest.mark.parametrize("end", [Crashed(), Failed(), Completed()], ids=lambda state: state.name)
def test_an_attempt_that_was_reported_as_over_is_over_for_good(end: State):
    states = [*BEFORE, Pending(), Running(), end]

    assert has_ended_since(states, BEFORE[-1].id)
    assert has_ended_since([*states, AwaitingRetry(), Pending(), Running()], BEFORE[-1].id)


def test_the_end_of_an_earlier_attempt_is_not_that_of_this_one():
    assert not has_ended_since([*BEFORE, Pending(), Running()], BEFORE[-1].id)
    assert not has_ended_since(BEFORE, BEFORE[-1].id)


def test_an_attempt_whose_beginning_is_not_known_has_not_ended():
    assert not has_ended_since([*BEFORE, Pending(), Crashed()], None)
    assert not has_ended_since([Crashed()], BEFORE[-1].id)
    assert not has_ended_since([], BEFORE[-1].id)


class Server:
    """What a worker hears of a run's states."""

    def __init__(self, *states: State, unreadable: bool = False) -> None:
        self.states = list(states)
        self.unreadable = unreadable

    async def read_flow_run_states(self, _run_id: UUID) -> list[State]:
        if self.unreadable:
            raise OSError("nobody answers")
        return self.states


@pytest.mark.parametrize(
    ("server", "told"),
    [
        (Server(*BEFORE, Pending()), ["it is gone"]),
        (Server(*BEFORE, Pending(), Crashed()), []),
        (Server(*BEFORE, Crashed(), unreadable=True), ["it is gone"]),
    ],
    ids=["not yet", "already", "cannot be told"],
)
def test_a_crash_is_reported_unless_the_end_of_the_attempt_is_known(
    monkeypatch: pytest.MonkeyPatch, server: Server, told: list[str]
):
    reported: list[str] = []

    async def propose(_self: object, _run: object, message: str, client: object = None) -> None:
        reported.append(message)

    monkeypatch.setattr(ProcessWorker, "_propose_crashed_state", propose)
    run = SimpleNamespace(id=uuid4(), state_id=BEFORE[-1].id)

    anyio.run(lambda: StudyWorker(work_pool_name="cpu")._propose_crashed_state(run, "it is gone", client=server))

    assert reported == told
