"""What is built on private members of Prefect's worker: a release that changes them is told here."""

from __future__ import annotations

import inspect
from types import SimpleNamespace
from uuid import UUID, uuid4

import anyio
import pytest
from prefect.client.schemas.objects import State
from prefect.states import AwaitingRetry, Completed, Crashed, Failed, Pending, Running, Scheduled
from prefect.workers.base import BaseWorker
from prefect.workers.process import ProcessWorker

from deployments.study_worker import StudyWorker, has_ended_since


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
