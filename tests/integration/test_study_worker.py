"""Our worker on a real Prefect server; what it starts is a command that takes no time."""

from __future__ import annotations

import copy
import threading
from collections.abc import Iterator

import anyio
import pytest
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.actions import WorkPoolUpdate
from prefect.client.schemas.objects import FlowRun
from prefect.states import AwaitingRetry

import flows_engine.flows.process_study as recipe
from deployments.apply import bring_into_step
from deployments.pool_template import JOB_TEMPLATE
from flows_engine.worker.worker_type import DicomflowWorker
from tests.factories import run_parameters
from tests.fakes.definitions import flow

pytestmark = pytest.mark.prefect

DEFINITION = flow("A", {"Modality": "CT"})
PATIENCE_SECONDS = 60


class SlowEngine:
    """Its containers take as long to remove as the test wants."""

    def __init__(self) -> None:
        self.asked = threading.Event()
        self.go_on = threading.Event()

    def remove_containers(self, *, run_id: str) -> int:
        self.asked.set()
        assert self.go_on.wait(PATIENCE_SECONDS)
        return 0


@pytest.fixture
def client(empty_prefect: str) -> Iterator[SyncPrefectClient]:
    with get_client(sync_client=True) as client:
        bring_into_step(client, [DEFINITION])
        yield client
        # Work pools outlast a test, and others expect that of a site.
        client.update_work_pool("cpu", WorkPoolUpdate(base_job_template=JOB_TEMPLATE))


def waiting_run(client: SyncPrefectClient, *, command: str) -> FlowRun:
    """Make a run whose process is ``command``."""
    template = copy.deepcopy(JOB_TEMPLATE)
    template["job_configuration"]["command"] = command
    client.update_work_pool("cpu", WorkPoolUpdate(base_job_template=template))
    (deployment,) = client.read_deployments()
    parameters = run_parameters(DEFINITION)
    return client.create_flow_run_from_deployment(deployment.id, parameters=parameters)


def test_a_retry_while_the_containers_of_a_killed_run_are_removed_is_not_undone(
    client: SyncPrefectClient, monkeypatch: pytest.MonkeyPatch
):
    engine = SlowEngine()
    monkeypatch.setattr(recipe, "site_engine", lambda: engine)
    run = waiting_run(client, command="sh -c 'kill -9 $$'")

    async def kill_and_retry() -> None:
        async with DicomflowWorker(work_pool_name="cpu", limit=1) as worker:
            await worker.get_and_submit_flow_runs()
            assert await anyio.to_thread.run_sync(engine.asked.wait, PATIENCE_SECONDS)
            assert client.read_flow_run(run.id).state_name == "Crashed"
            client.set_flow_run_state(run.id, AwaitingRetry(message="Retry from the UI"))
            engine.go_on.set()
        # The worker has said all it had to say.

    anyio.run(kill_and_retry)

    assert [state.name for state in client.read_flow_run_states(run.id)][-2:] == ["Crashed", "AwaitingRetry"]
