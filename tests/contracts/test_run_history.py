"""What every RunHistory promises, together with the trigger that makes the runs. A member is added to ``MEMBERS``."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from uuid import UUID, uuid4

import pytest
from prefect.client.orchestration import SyncPrefectClient
from prefect.states import Cancelled, Completed, Pending, Running
from uuid_utils import uuid7

from deployments.apply import bring_into_step
from dicom_gateway.interfaces import RunHistory, RunTrigger
from dicom_gateway.prefect_trigger import PrefectTrigger
from dicom_gateway.run_history import PrefectRunHistory
from flows_engine.definition.naming import request_tag
from flows_engine.handoff.run_request import RunRequest, Sender
from tests.fakes.definitions import flow
from tests.fakes.run_history import FakeRunHistory
from tests.fakes.run_trigger import FakeRunTrigger

A, B = (flow(f"history {name}", {"Modality": "CT"}) for name in "AB")


class World:
    """A trigger, the history of what it made, and what becomes of the runs meanwhile."""

    def __init__(self, trigger: RunTrigger, history: RunHistory) -> None:
        self.trigger = trigger
        self.history = history

    def run(self, study_id: str, definition=A, *, request_id: str = "") -> str:
        request = RunRequest(
            study_id=study_id,
            study_uri=f"file:///data/studies/{study_id}",
            sender=Sender(ae_title="PACS", host="10.0.0.1", port=104),
            received_at=datetime(2024, 5, 6, tzinfo=UTC),
            definition=definition,
        )
        tags = [request_tag(request_id)] if request_id else []
        return self.trigger.trigger(request, idempotency_key=str(uuid4()), tags=tags)

    def begin(self, run_id: str) -> None:
        raise NotImplementedError

    def finish(self, run_id: str) -> None:
        raise NotImplementedError


class InMemory(World):
    def __init__(self) -> None:
        trigger = FakeRunTrigger()
        self.fake = FakeRunHistory(trigger)
        super().__init__(trigger, self.fake)

    def begin(self, run_id: str) -> None:
        self.fake.begun.add(run_id)

    def finish(self, run_id: str) -> None:
        self.fake.over.add(run_id)


class OnPrefect(World):
    def __init__(self, client: SyncPrefectClient, trigger: PrefectTrigger) -> None:
        super().__init__(trigger, PrefectRunHistory(client))
        self.client = client

    def begin(self, run_id: str) -> None:
        for state in (Pending(), Running()):
            self.client.set_flow_run_state(UUID(run_id), state)

    def finish(self, run_id: str) -> None:
        self.client.set_flow_run_state(UUID(run_id), Completed(), force=True)


@contextmanager
def in_memory(_request: pytest.FixtureRequest) -> Iterator[World]:
    yield InMemory()


@contextmanager
def on_prefect(request: pytest.FixtureRequest) -> Iterator[World]:
    url = request.getfixturevalue("prefect_server")
    with SyncPrefectClient(url) as client, PrefectTrigger(SyncPrefectClient(url)) as trigger:
        bring_into_step(client, [A, B])
        yield OnPrefect(client, trigger)


MEMBERS = [pytest.param(in_memory, id="in-memory"), pytest.param(on_prefect, id="prefect", marks=pytest.mark.prefect)]


@pytest.fixture(scope="module", params=MEMBERS)
def world(request):
    with request.param(request) as member:
        yield member


@pytest.fixture
def study() -> str:
    return str(uuid7())


def test_a_study_has_the_runs_of_the_flows_that_are_asked_for_and_no_others(world, study):
    first, second = world.run(study), world.run(study)
    other = world.run(study, B)
    world.run(str(uuid7()))

    runs = world.history.runs_of(study, flows=[A.name])
    both = world.history.runs_of(study, flows=[A.name, B.name])

    assert {run.run_id for run in runs} == {first, second}
    assert {run.run_id for run in both} == {first, second, other}
    assert {(run.flow, run.digest) for run in runs} == {(A.name, A.digest)}


def test_the_later_of_two_runs_is_told_from_the_earlier_one(world, study):
    first, second = world.run(study), world.run(study)
    moments = {run.run_id: run.created_at for run in world.history.runs_of(study, flows=[A.name])}
    assert moments[first] < moments[second]


def test_a_run_is_over_when_it_has_ended_and_not_before(world, study):
    run_id = world.run(study)
    for change, is_over in ((None, False), (world.begin, False), (world.finish, True)):
        if change is not None:
            change(run_id)
        (run,) = world.history.runs_of(study, flows=[A.name])
        assert (run.is_over, run.was_withdrawn) == (is_over, False)


def test_a_run_names_the_request_that_made_it(world, study):
    request_id = str(uuid4())
    world.run(study, request_id=request_id)
    world.run(study, B)
    made = {run.flow: run.request_ids for run in world.history.runs_of(study, flows=[A.name, B.name])}
    assert made == {A.name: {request_id}, B.name: frozenset()}


def test_runs_wait_until_they_begin_and_count_for_their_own_request(world):
    request_id = str(uuid4())
    runs = [world.run(str(uuid7()), request_id=request_id) for _ in range(3)]
    world.run(str(uuid7()), request_id=str(uuid4()))

    assert world.history.waiting(request_id) == 3
    world.begin(runs[0])
    assert world.history.waiting(request_id) == 2


def test_what_has_not_begun_is_withdrawn_once_and_what_has_begun_goes_on(world, study):
    request_id = str(uuid4())
    waiting = world.run(study, request_id=request_id)
    begun = world.run(study, B, request_id=request_id)
    world.begin(begun)

    assert world.history.withdraw(request_id) == 1
    assert world.history.withdraw(request_id) == 0

    runs = {run.run_id: run for run in world.history.runs_of(study, flows=[A.name, B.name])}
    assert (runs[waiting].is_over, runs[waiting].was_withdrawn) == (True, True)
    assert (runs[begun].is_over, runs[begun].was_withdrawn) == (False, False)
    assert world.history.waiting(request_id) == 0


def test_a_run_that_a_person_cancelled_was_not_withdrawn(world, study):
    run_id = world.run(study)
    if isinstance(world, OnPrefect):
        world.client.set_flow_run_state(UUID(run_id), Cancelled())
    else:
        world.finish(run_id)
    (run,) = world.history.runs_of(study, flows=[A.name])
    assert (run.is_over, run.was_withdrawn) == (True, False)
