"""Runs of which nothing is heard any more, on a real Prefect server, whose triggers and automations are Prefect's."""

from __future__ import annotations

from collections.abc import Iterator
from uuid import UUID, uuid4

import httpx
import pytest
from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas.objects import FlowRun, StateType
from prefect.states import Completed, Running
from prefect.types._datetime import now

from deployments import lost_runs
from deployments.apply import bring_into_step
from deployments.lost_runs import AUTOMATION_NAME, lost_runs_automation, watch_for_lost_runs
from deployments.server_api import create_automation
from flows_engine.definition.naming import FLOW_NAME, HOST_LOST, work_queue
from tests.factories import run_parameters
from tests.fakes.definitions import flow
from tests.services import wait_until

pytestmark = pytest.mark.prefect

DEFINITION = flow("A", {"Modality": "CT"})


@pytest.fixture
def client(empty_prefect: str) -> Iterator[SyncPrefectClient]:
    def forget() -> None:
        for automation in client.read_automations_by_name(AUTOMATION_NAME):
            client.delete_automation(automation.id)

    with SyncPrefectClient(empty_prefect) as client:
        forget()
        yield client
        forget()


def running(client: SyncPrefectClient) -> FlowRun:
    (deployment,) = client.read_deployments()
    run = client.create_flow_run_from_deployment(
        deployment.id, parameters=run_parameters(DEFINITION), work_queue_name=work_queue(0)
    )
    client.set_flow_run_state(run.id, Running(), force=True)
    return run


def beat(client: SyncPrefectClient, run: FlowRun) -> None:
    """Say what a run's process says every half minute."""
    event = {
        "event": "prefect.flow-run.heartbeat",
        "id": str(uuid4()),
        "occurred": str(now("UTC")),
        "resource": {"prefect.resource.id": f"prefect.flow-run.{run.id}", "prefect.resource.name": run.name},
        "related": [
            {
                "prefect.resource.id": f"prefect.flow.{run.flow_id}",
                "prefect.resource.role": "flow",
                "prefect.resource.name": FLOW_NAME,
            }
        ],
    }
    httpx.post(f"{client.api_url}events", json=[event]).raise_for_status()


def state_name(client: SyncPrefectClient, run_id: UUID) -> str | None:
    return client.read_flow_run(run_id).state_name


def test_a_run_of_which_nothing_is_heard_is_crashed_and_one_that_is_over_is_not(client: SyncPrefectClient):
    bring_into_step(client, [DEFINITION])
    create_automation(client, lost_runs_automation(patience_seconds=10))
    lost, well = running(client), running(client)
    for run in (lost, well):
        beat(client, run)
    client.set_flow_run_state(well.id, Completed())

    wait_until(lambda: state_name(client, lost.id) == HOST_LOST, seconds=120, what="it is shown", every_seconds=0.5)

    found = client.read_flow_run(lost.id)
    assert found.state_type == StateType.CRASHED
    assert found.state is not None
    assert str(found.state.message).startswith("nothing was heard of it any more")
    assert state_name(client, well.id) == "Completed"


def test_it_is_watched_for_once_and_what_a_person_changed_is_kept(client: SyncPrefectClient):
    assert watch_for_lost_runs(client)
    made = client.find_automation(AUTOMATION_NAME)
    assert made is not None
    client.pause_automation(made.id)

    assert not watch_for_lost_runs(client)
    (kept,) = client.read_automations_by_name(AUTOMATION_NAME)
    assert (kept.id, kept.enabled) == (made.id, False)


def test_three_heartbeats_have_to_be_missed():
    from deployments.services import PREFECT_DEFAULTS

    assert 3 * int(PREFECT_DEFAULTS["PREFECT_FLOWS_HEARTBEAT_FREQUENCY"]) < lost_runs._PATIENCE_SECONDS < 120
