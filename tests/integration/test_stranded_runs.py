"""Runs whose process is gone, on a real Prefect server: those of this host go on, the others are left alone."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from uuid import UUID

import httpx
import pytest
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.objects import FlowRun, State, StateType
from prefect.states import Completed, Pending, Running, Scheduled

from deployments import stranded_runs
from deployments.apply import bring_into_step
from deployments.stranded_runs import resume_stranded_runs
from flows_engine.definition import naming
from flows_engine.definition.naming import HOST_LOST, work_queue
from flows_engine.handoff.run_claim import claim
from tests import services
from tests.factories import run_parameters
from tests.fakes.definitions import flow

pytestmark = pytest.mark.prefect

DEFINITION = flow("A", {"Modality": "CT"})


class Host:
    """A host whose worker starts: its runs folder, and the containers that it is told to remove."""

    def __init__(self, client: SyncPrefectClient, runs: Path) -> None:
        self.client = client
        self.runs = runs
        self.cleared: list[str] = []

    def run(self, state: State, *, began: bool = True) -> UUID:
        """Make a run in a state; ``began`` tells whether a process of this host ever claimed it."""
        (deployment,) = self.client.read_deployments()
        parameters = run_parameters(DEFINITION)
        run = self.client.create_flow_run_from_deployment(
            deployment.id, parameters=parameters, work_queue_name=work_queue(0)
        )
        self.client.set_flow_run_state(run.id, state, force=True)
        if began:
            with claim(self.runs / str(run.id)):
                pass
        return run.id

    def worker_starts(self, *, pool: str = "cpu") -> int:
        return resume_stranded_runs(
            self.client,
            pool=pool,
            worker_name="this-cpu",
            runs_folder=self.runs,
            remove_containers=lambda run_id: len(self.cleared.append(run_id) or ()),
        )

    def __getitem__(self, run_id: UUID) -> FlowRun:
        return self.client.read_flow_run(run_id)


@pytest.fixture
def host(empty_prefect: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Host]:
    monkeypatch.setattr(stranded_runs, "_SETTLING_SECONDS", 0.5)
    with get_client(sync_client=True) as client:
        bring_into_step(client, [DEFINITION])
        yield Host(client, tmp_path / "runs")


@pytest.fixture
def other_worker(host: Host, empty_prefect: str) -> Iterator[None]:
    """A worker of another host, online in the pool ``cpu``."""
    host.client.send_worker_heartbeat("cpu", "other-cpu", heartbeat_interval_seconds=30)
    yield
    httpx.delete(f"{empty_prefect}/work_pools/cpu/workers/other-cpu").raise_for_status()


@pytest.mark.parametrize("name", ["Running", "Sending"])
def test_a_run_whose_process_is_gone_goes_on(host: Host, name: str):
    run = host.run(State(type=StateType.RUNNING, name=name))

    assert host.worker_starts() == 1

    state = host[run].state
    assert (state.type, state.name) == (StateType.SCHEDULED, "AwaitingRetry")
    assert state.message == "its process was gone; it goes on where it was cut off"
    assert host.cleared == [str(run)]
    # It waits where its worker looks for it.
    assert (host[run].work_pool_name, host[run].work_queue_name) == ("cpu", "priority-0")


def test_a_run_with_a_living_process_is_left_alone(host: Host):
    run = host.run(Running())

    with claim(host.runs / str(run)):
        assert host.worker_starts() == 0

    assert host[run].state_name == "Running"
    assert host.cleared == []


def test_a_run_that_was_being_cancelled_is_cancelled(host: Host):
    run = host.run(Running())
    host.client.set_flow_run_state(run, State(type=StateType.CANCELLING, name="Cancelling"), force=True)
    assert host[run].state_type == StateType.CANCELLING

    assert host.worker_starts() == 1

    assert host[run].state_type == StateType.CANCELLED
    assert host.cleared == [str(run)]


def test_a_run_that_dies_again_and_again_is_given_up_visibly(host: Host):
    run = host.run(Running())
    for _ in range(4):
        host.client.set_flow_run_state(run, Scheduled(), force=True)
        host.client.set_flow_run_state(run, Running(), force=True)
    assert host[run].run_count == 5

    assert host.worker_starts() == 1

    assert host[run].state_type == StateType.CRASHED
    assert host[run].state.message == "its process was gone after each of 5 starts; retry it by hand"


def test_what_a_run_says_while_it_runs_is_no_further_start(host: Host):
    run = host.run(Running())
    for name in ("Finished", "Sending"):
        host.client.set_flow_run_state(run, State(type=StateType.RUNNING, name=name))
    for state in (Scheduled(), Running(), State(type=StateType.RUNNING, name="Sending")):
        host.client.set_flow_run_state(run, state, force=True)
    assert host[run].run_count == 5

    assert host.worker_starts() == 1

    assert host[run].state_name == "AwaitingRetry"


@pytest.mark.parametrize("state", [Pending(), Running()], ids=lambda state: state.name)
def test_a_run_that_another_host_may_be_executing_is_left_alone(host: Host, other_worker: None, state: State):
    run = host.run(state, began=False)

    assert host.worker_starts() == 0
    assert host[run].state_type == state.type


def test_a_run_that_began_here_goes_on_whoever_else_is_there(host: Host, other_worker: None):
    run = host.run(Running())

    assert host.worker_starts() == 1
    assert host[run].state_name == "AwaitingRetry"


def test_a_run_that_was_submitted_and_never_began_goes_on_where_nobody_else_is(host: Host):
    host.client.send_worker_heartbeat("cpu", "this-cpu", heartbeat_interval_seconds=30)
    run = host.run(Pending(), began=False)

    assert host.worker_starts() == 1
    assert host[run].state_name == "AwaitingRetry"


def test_runs_that_wait_or_are_over_are_left_alone(host: Host):
    runs = {host.run(state): state.name for state in (Scheduled(), Completed(message="sent"))}

    assert host.worker_starts() == 0
    assert {run: host[run].state_name for run in runs} == runs


def test_runs_of_another_pool_are_left_alone(host: Host):
    run = host.run(Running())

    assert host.worker_starts(pool="gpu") == 0
    assert host[run].state_name == "Running"


def test_a_run_that_was_given_up_with_its_host_goes_on_when_that_is_back(host: Host):
    lost = State(type=StateType.CRASHED, name=HOST_LOST)
    ours, elsewhere, alive = host.run(lost), host.run(lost, began=False), host.run(lost)
    crashed = host.run(State(type=StateType.CRASHED, name="Crashed"))
    with claim(host.runs / str(alive)):
        assert host.worker_starts() == 1

    names = {run_id: host.client.read_flow_run(run_id).state_name for run_id in (ours, elsewhere, alive, crashed)}
    assert names == {ours: "AwaitingRetry", elsewhere: HOST_LOST, alive: HOST_LOST, crashed: "Crashed"}
    assert host.cleared == [str(ours)]


def test_a_run_that_was_given_up_stays_so_where_the_study_was_processed_again(host: Host):
    tag = naming.study_tag(str(run_parameters(DEFINITION)["study_id"]))
    lost = host.run(State(type=StateType.CRASHED, name=HOST_LOST))
    host.client.update_flow_run(lost, tags=[tag])
    again = host.run(Completed())
    host.client.update_flow_run(again, tags=[tag])

    assert host.worker_starts() == 0
    assert host.client.read_flow_run(lost).state_name == HOST_LOST


def test_several_stranded_runs_all_go_on(host: Host, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(stranded_runs, "_PAGE", 2)
    runs = [host.run(Running()) for _ in range(3)]

    assert host.worker_starts() == 3
    assert {host[run].state_name for run in runs} == {"AwaitingRetry"}
    assert sorted(host.cleared) == sorted(map(str, runs))


def test_a_worker_does_not_make_a_pool_of_its_own(empty_prefect: str, tmp_path: Path):
    done = subprocess.run(
        [sys.executable, "-m", "deployments.cli", "worker", "--pool", "gpu-a100"],
        env={
            **services.prefect_environment(tmp_path, api_url=empty_prefect),
            "DATA_DIR": str(tmp_path),
            "CONF_DIR": str(tmp_path),
        },
        cwd=services.ROOT,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )

    assert done.returncode == 1
    assert done.stderr.splitlines() == [
        (
            "dicomflow: Prefect has no work pool 'gpu-a100'; "
            "`dicomflow deploy` makes the pools that the definitions ask for"
        )
    ]
