"""A waiting run moves to another queue of a real Prefect server, whoever dies or comes in between."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

import pytest
from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas.actions import DeploymentUpdate
from prefect.client.schemas.objects import FlowRun, State
from prefect.exceptions import ObjectNotFound
from prefect.states import AwaitingRetry, Cancelled, Failed, Paused, Pending, Running, Scheduled

from deployments.apply import bring_into_step
from deployments.priority import RunNotFoundError, find_run
from deployments.successor import MoveRefusedError, finish_moves, place
from dicom_gateway.prefect_trigger import PrefectTrigger
from flows_engine.definition import naming
from flows_engine.handoff.run_request import RunRequest
from tests import services
from tests.factories import run_parameters
from tests.fakes.definitions import flow

pytestmark = pytest.mark.prefect

DEFINITION = flow("A", {"Modality": "CT"})
REQUEST = RunRequest.model_validate(run_parameters(DEFINITION))
KEY = "study 1, flow A"
CHANGES_OF_A_MOVE = 3


class KilledError(BaseException):
    """What a process has of SIGKILL: nothing more is done."""


class Site:
    """What is on the server, and what a worker would be given."""

    def __init__(self, client: SyncPrefectClient) -> None:
        self.client = client

    def trigger(self) -> UUID:
        """Make the one run as the gateway does; return its id, also where it is there."""
        return UUID(PrefectTrigger(self.client).trigger(REQUEST, idempotency_key=KEY))

    def __getitem__(self, run_id: UUID) -> FlowRun:
        return self.client.read_flow_run(run_id)

    def set(self, run_id: UUID, state: State, *, force: bool = False) -> None:
        self.client.set_flow_run_state(run_id, state, force=force)

    def place(self, run_id: UUID, priority: int):
        return place(self.client, self[run_id], priority=priority)

    def taken_next(self) -> list[UUID]:
        """Return what a worker that polls now would be given, in this order."""
        soon = (datetime.now(UTC) + timedelta(seconds=10)).isoformat()
        response = self.client.request(
            "POST", "/work_pools/cpu/get_scheduled_flow_runs", json={"scheduled_before": soon}
        )
        return [UUID(entry["flow_run"]["id"]) for entry in response.json()]

    def ids(self) -> set[UUID]:
        return {run.id for run in self.client.read_flow_runs()}

    def changes_of(self, act: Callable[[], object], *, killed_after: int | None = None) -> int:
        """Do ``act`` until it ends, or until it has changed so many things on the server; return how many it did."""
        request, done = self.client.request, 0

        def counted(method: str, path: Any, **values: Any) -> Any:
            nonlocal done
            changes = method == "PATCH" or path.endswith(("/create_flow_run", "/set_state"))
            if changes and done == killed_after:
                raise KilledError
            response = request(method, path, **values)
            done += changes
            return response

        with pytest.MonkeyPatch.context() as patch, suppress(KilledError):
            patch.setattr(self.client, "request", counted)
            act()
        return done

    def in_front_of(self, ending: str, do: Callable[[], object], act: Callable[[], object]) -> None:
        """Do ``act``, and ``do`` right before its first request to a path with this ending."""
        request, waiting = self.client.request, [do]

        def watched(method: str, path: Any, **values: Any) -> Any:
            if path.endswith(ending) and waiting:
                with pytest.MonkeyPatch.context() as inner:
                    inner.setattr(self.client, "request", request)
                    waiting.pop()()
            return request(method, path, **values)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(self.client, "request", watched)
            act()


@pytest.fixture(scope="module")
def deployed(prefect_server: str) -> Iterator[SyncPrefectClient]:
    services.empty_prefect_server(prefect_server, pools=False)
    with SyncPrefectClient(prefect_server) as client:
        bring_into_step(client, [DEFINITION])
        yield client


@pytest.fixture
def site(deployed: SyncPrefectClient) -> Iterator[Site]:
    site = Site(deployed)
    yield site
    for run_id in site.ids():
        deployed.delete_flow_run(run_id)


@pytest.fixture
def change_deployment(site: Site) -> Iterator[Callable[[DeploymentUpdate], None]]:
    """Change the deployment of all runs, for as long as the test lasts."""
    (deployment,) = site.client.read_deployments()
    yield lambda update: site.client.update_deployment(deployment.id, update)
    site.client.update_deployment(deployment.id, DeploymentUpdate(concurrency_limit=None))
    bring_into_step(site.client, [DEFINITION])


def test_a_waiting_run_goes_to_the_other_queue_with_all_it_has(site: Site):
    first = site.trigger()
    before = site[first]

    assert site.changes_of(lambda: site.place(first, 5)) == CHANGES_OF_A_MOVE

    (moved,) = site.taken_next()
    now = site[moved]
    assert (now.work_pool_name, now.work_queue_name) == ("cpu", "priority-5")
    assert set(now.tags) == {"dicomflow", "priority:5", naming.study_tag(REQUEST.study_id)}
    for kept in ("name", "parameters", "expected_start_time", "next_scheduled_start_time", "deployment_id"):
        assert getattr(now, kept) == getattr(before, kept), kept
    assert site[first].state_name == "Cancelled"
    assert site[first].state.message == f"moved to the queue priority-5, as run {now.id}"
    assert now.state.message == f"takes the place of run {first}"


def test_the_gateway_does_not_make_a_moved_run_again(site: Site):
    first = site.trigger()
    site.place(first, 5)

    assert site.trigger() == first
    assert len(site.ids()) == 2


def test_a_run_that_waits_there_already_is_left_alone(site: Site):
    first = site.trigger()

    placement = site.place(first, 0)

    assert (placement.moved, placement.run.id) == (False, first)
    assert site.ids() == {first}


def test_a_moved_run_can_be_moved_on_by_its_first_id(site: Site):
    first = site.trigger()
    second = site.place(first, 5).run.id

    third = site.place(first, 3).run.id

    assert len({first, second, third}) == 3
    assert site[third].work_queue_name == "priority-3"
    assert [tag for tag in site[third].tags if naming.is_priority_tag(tag)] == ["priority:3"]
    assert site[third].expected_start_time == site[first].expected_start_time
    assert site.taken_next() == [third]


@pytest.mark.parametrize("changes", range(CHANGES_OF_A_MOVE))
@pytest.mark.parametrize("who", ["the same command", "a worker that starts", "another priority"])
def test_a_kill_at_any_step_loses_nothing_and_doubles_nothing(site: Site, changes: int, who: str):
    first = site.trigger()

    assert site.changes_of(lambda: site.place(first, 5), killed_after=changes) == changes

    assert set(site.taken_next()) <= {first}
    waiting = {run_id for run_id in site.ids() if site[run_id].state_name in {"Scheduled", "Late"}}
    assert waiting, "nothing is left of the run"
    if who == "a worker that starts":
        assert finish_moves(site.client, pool="cpu") == (changes > 0)
        expected = "priority-5" if changes else "priority-0"
    else:
        wanted = 5 if who == "the same command" else 3
        site.place(first, wanted)
        expected = naming.work_queue(wanted)
    (taken,) = site.taken_next()
    assert site[taken].work_queue_name == expected
    assert (taken == first) == (expected == "priority-0")
    assert [site[run_id].state_name for run_id in site.ids() - {taken}] == ["Cancelled"] * (len(site.ids()) - 1)
    assert finish_moves(site.client, pool="cpu") == 0
    assert site.taken_next() == [taken]


def test_several_who_move_a_run_at_once_leave_one_that_waits(site: Site, prefect_server: str):
    first = site.trigger()

    def move(priority: int) -> str:
        with SyncPrefectClient(prefect_server) as client:
            return str(place(client, client.read_flow_run(first), priority=priority).run.work_queue_name)

    with ThreadPoolExecutor(max_workers=4) as commands:
        places = list(commands.map(move, [5, 5, 4, 4]))

    (taken,) = site.taken_next()
    assert places == ["priority-5", "priority-5", "priority-4", "priority-4"]
    assert site[taken].work_queue_name in set(places)
    assert finish_moves(site.client, pool="cpu") == 0
    assert [site[run_id].state_name for run_id in site.ids() - {taken}] == ["Cancelled"] * (len(site.ids()) - 1)


@pytest.mark.parametrize("began", [Pending(), Running()], ids=lambda state: state.name)
def test_a_run_that_begins_meanwhile_is_not_stopped(site: Site, began: State):
    first = site.trigger()

    def take() -> None:
        site.set(first, Pending())
        if began.is_running():
            site.set(first, Running())

    with pytest.raises(MoveRefusedError, match=r"it has just begun, and is not stopped$"):
        site.in_front_of("/set_state", take, lambda: site.place(first, 5))

    assert site[first].state_name == began.name
    assert site.ids() == {first}


def test_a_run_that_begins_before_the_move_is_finished_keeps_its_place(site: Site):
    first = site.trigger()
    site.changes_of(lambda: site.place(first, 5), killed_after=1)
    site.set(first, Pending())

    assert finish_moves(site.client, pool="cpu") == 1

    assert site.ids() == {first}
    assert site[first].state_name == "Pending"


def test_a_run_that_a_person_cancels_meanwhile_stays_cancelled(site: Site):
    first = site.trigger()
    site.changes_of(lambda: site.place(first, 5), killed_after=1)
    site.set(first, Cancelled(message="Cancelled from the UI"))

    with pytest.raises(MoveRefusedError, match=r"it is over \(Cancelled\)$"):
        site.place(first, 5)

    assert site.ids() == {first}
    assert site[first].state.message == "Cancelled from the UI"


def test_a_run_that_a_person_takes_up_again_while_it_is_moved_is_not_doubled(site: Site):
    first = site.trigger()
    site.changes_of(lambda: site.place(first, 5), killed_after=2)
    site.set(first, AwaitingRetry())
    site.set(first, Pending())

    finish_moves(site.client, pool="cpu")

    assert site.ids() == {first}
    assert site[first].state_name == "Pending"


def test_a_run_that_is_deleted_while_it_is_moved_leaves_its_successor(site: Site):
    first = site.trigger()
    site.changes_of(lambda: site.place(first, 5), killed_after=2)
    site.client.delete_flow_run(first)

    finish_moves(site.client, pool="cpu")

    (taken,) = site.taken_next()
    assert site[taken].work_queue_name == "priority-5"
    with pytest.raises(ObjectNotFound):
        site[first]


@pytest.mark.parametrize(
    ("states", "reason"),
    [
        ([Pending()], "it has begun (Pending), and what has begun is not stopped"),
        ([Running()], "it has begun (Running), and what has begun is not stopped"),
        ([Running(), Failed()], "it is over (Failed)"),
        ([Running(), Failed(), AwaitingRetry()], "it has run before and goes on where that ended"),
        ([Paused()], "it is paused; resume it first"),
    ],
    ids=["taken", "running", "failed", "retried", "paused"],
)
def test_what_does_not_wait_for_its_first_start_is_refused(site: Site, states: list[State], reason: str):
    first = site.trigger()
    for state in states:
        site.set(first, state, force=True)

    with pytest.raises(MoveRefusedError) as refused:
        site.place(first, 5)

    assert reason in str(refused.value)
    assert str(first) in str(refused.value)
    assert site.ids() == {first}
    assert site[first].state_name == states[-1].name


def test_a_run_that_never_began_and_is_taken_up_again_can_be_moved(site: Site):
    first = site.trigger()
    for state in (Pending(), AwaitingRetry()):
        site.set(first, state, force=True)

    assert site.place(first, 5).moved


def test_a_run_that_waits_for_its_flows_concurrency_limit_can_be_moved(site: Site, change_deployment):
    change_deployment(DeploymentUpdate(concurrency_limit=1))
    (deployment,) = site.client.read_deployments()
    busy = site.client.create_flow_run_from_deployment(deployment.id, parameters=REQUEST.model_dump(mode="json"))
    site.set(busy.id, Pending())
    first = site.trigger()
    site.set(first, Pending())
    assert site[first].state_name == "AwaitingConcurrencySlot"

    moved = site.place(first, 5).run

    assert site[first].state_name == "Cancelled"
    assert site.taken_next() == [moved.id]
    assert site[moved.id].expected_start_time == site[first].expected_start_time


def test_a_run_whose_flow_went_to_another_pool_is_refused(site: Site, change_deployment):
    first = site.trigger()
    change_deployment(DeploymentUpdate(work_pool_name="gpu", work_queue_name="priority-0"))

    with pytest.raises(MoveRefusedError, match="it waits in the work pool cpu, and its flow now belongs to gpu"):
        site.place(first, 5)

    assert site.taken_next() == [first]


def test_a_queue_that_is_missing_is_not_made(site: Site):
    first = site.trigger()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(naming, "work_queue", lambda priority: f"urgent-{priority}")
        with pytest.raises(MoveRefusedError, match="its work pool cpu has no queue urgent-5; `dicomflow deploy`"):
            site.place(first, 5)

    assert site.ids() == {first}
    assert "urgent-5" not in {queue.name for queue in site.client.read_work_queues(work_pool_name="cpu")}


def test_a_run_of_a_deployment_that_is_paused_can_be_moved(site: Site, change_deployment):
    first = site.trigger()
    change_deployment(DeploymentUpdate(paused=True))

    assert site.place(first, 5).moved


def test_a_run_is_found_by_its_id_and_by_how_its_name_begins(site: Site):
    first = site.trigger()

    assert find_run(site.client, str(first)).id == first
    assert find_run(site.client, f"A {REQUEST.study_id[:8]}").id == first
    with pytest.raises(RunNotFoundError, match="no run has a name that begins with '0193'"):
        find_run(site.client, "0193")
    with pytest.raises(RunNotFoundError, match="Prefect has no run 01940000-0000-7000-8000-000000000000"):
        find_run(site.client, "01940000-0000-7000-8000-000000000000")


def test_of_a_run_and_its_successor_the_one_that_waits_is_meant(site: Site):
    first = site.trigger()
    moved = site.place(first, 5).run

    assert find_run(site.client, f"A {REQUEST.study_id}").id == moved.id


def test_two_runs_that_wait_are_not_guessed_between(site: Site):
    (deployment,) = site.client.read_deployments()
    for _ in range(2):
        site.client.create_flow_run_from_deployment(
            deployment.id, name="A again", parameters=REQUEST.model_dump(mode="json"), state=Scheduled()
        )

    with pytest.raises(RunNotFoundError, match=r"several runs .* 'A a': A again \(.*\), A again \(.*\); give the id$"):
        find_run(site.client, "A a")
