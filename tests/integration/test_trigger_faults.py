"""Whatever fails while studies are triggered, each is triggered once, and the ledger knows every run.

``TRIGGER_STUDIES=200 OUTAGE_SECONDS=60`` make the long version of it.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas.filters import DeploymentFilter, DeploymentFilterName

from deployments.apply import bring_into_step
from dicom_gateway.ledger import Ledger
from dicom_gateway.outbox import Outbox
from dicom_gateway.prefect_trigger import PrefectTrigger
from flows_engine.definition.schema import FlowDefinition
from tests.fakes.definitions import FakeDefinitions, flow
from tests.fakes.entered_studies import enter_study
from tests.fakes.http_door import HttpDoor
from tests.prefect_host import DATABASE, SERVER, PrefectHost
from tests.services import running, wait_until

pytestmark = pytest.mark.prefect

STUDIES = int(os.environ.get("TRIGGER_STUDIES", "40"))
OUTAGE_SECONDS = float(os.environ.get("OUTAGE_SECONDS", "2"))
BEFORE_THE_FAULT = STUDIES // 4
PATIENCE_SECONDS = 120.0 + STUDIES


@pytest.fixture(scope="module")
def host(tmp_path_factory: pytest.TempPathFactory) -> Iterator[PrefectHost]:
    with PrefectHost(tmp_path_factory.mktemp("host")) as host:
        yield host


@pytest.fixture(autouse=True)
def _whoever_waits_does_so_by_itself(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Use Prefect's client as the gateway does."""
    from prefect.context import refresh_global_settings_context

    with monkeypatch.context() as environment:
        environment.setenv("PREFECT_CLIENT_MAX_RETRIES", "0")
        refresh_global_settings_context()
        yield
    refresh_global_settings_context()


class Studies:
    """Studies of one flow, decided on, of which none is triggered yet."""

    def __init__(self, host: PrefectHost, folder: Path, definition: FlowDefinition) -> None:
        self._host = host
        self._definition = definition
        self.ledger_path = folder / "ledger.sqlite"
        self.ledger = Ledger(self.ledger_path)
        with SyncPrefectClient(host.api_url) as client:
            bring_into_step(client, [definition])
        self.keys = [enter_study(self.ledger, definition) for _ in range(STUDIES)]

    @contextlib.contextmanager
    def being_triggered(self, api_url: str) -> Iterator[None]:
        """Trigger them over ``api_url`` while the block runs, which begins when some are."""
        with PrefectTrigger(SyncPrefectClient(api_url)) as trigger:
            outbox = Outbox(self.ledger, trigger, FakeDefinitions(self._definition))
            outbox.start()
            try:
                self.await_created(BEFORE_THE_FAULT)
                yield
            finally:
                outbox.stop()

    def await_created(self, count: int = STUDIES) -> None:
        wait_until(
            lambda: len(self.run_ids()) >= count,
            seconds=PATIENCE_SECONDS,
            what=f"{count} studies are triggered ({len(self.run_ids())} were)",
        )

    def run_ids(self) -> dict[str, str]:
        """Return the run of each idempotency key that the ledger knows to be created."""
        return {
            run.idempotency_key: run.flow_run_id
            for study in self.ledger.studies(limit=STUDIES + 1)
            for run in study.runs
            if run.state == "created"
        }

    def assert_each_was_triggered_once(self) -> None:
        assert sorted(self.run_ids()) == sorted(self.keys)
        assert sorted(self.run_ids().items()) == sorted(self._runs_on_the_server())

    def _runs_on_the_server(self) -> Iterator[tuple[str, str]]:
        mine = DeploymentFilter(name=DeploymentFilterName(any_=[self._definition.name]))
        offset = 0
        with SyncPrefectClient(self._host.api_url) as client:
            while page := client.read_flow_runs(deployment_filter=mine, limit=200, offset=offset):
                yield from ((run.idempotency_key or "", str(run.id)) for run in page)
                offset += len(page)


@pytest.fixture
def studies(host: PrefectHost, tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Studies]:
    made = Studies(host, tmp_path, flow(request.node.originalname, {"Modality": "CT"}))
    yield made
    made.ledger.close()


def test_the_server_answers_503_for_a_while(host: PrefectHost, studies: Studies):
    with HttpDoor(host.api_url) as door, studies.being_triggered(door.url):
        door.refusing = True
        began = time.monotonic()
        wait_until(lambda: door.refused > 0, seconds=10, what="a request is refused")
        wait_until(lambda: time.monotonic() > began + OUTAGE_SECONDS, seconds=OUTAGE_SECONDS + 1, what="the outage")
        assert door.refused < 10 + OUTAGE_SECONDS, "a server that is in trouble is not asked again and again"
        assert len(studies.run_ids()) < STUDIES
        door.refusing = False
        studies.await_created()

    studies.assert_each_was_triggered_once()


def test_the_server_is_killed_and_started_again(host: PrefectHost, studies: Studies):
    with studies.being_triggered(host.api_url):
        host.kill(SERVER)
        assert len(studies.run_ids()) < STUDIES
        host.start(SERVER)
        studies.await_created()

    studies.assert_each_was_triggered_once()


def test_its_database_is_killed_and_started_again(host: PrefectHost, studies: Studies):
    with studies.being_triggered(host.api_url):
        host.kill(DATABASE)
        assert len(studies.run_ids()) < STUDIES
        host.start(DATABASE)
        studies.await_created()

    studies.assert_each_was_triggered_once()


def test_answers_are_lost_after_the_server_has_created_the_run(host: PrefectHost, studies: Studies):
    with HttpDoor(host.api_url) as door, studies.being_triggered(door.url):
        door.losing = "/create_flow_run"
        wait_until(lambda: door.lost >= 3, seconds=60, what="answers are lost")
        door.losing = ""
        studies.await_created()

    studies.assert_each_was_triggered_once()


def test_the_gateways_own_process_is_killed_and_started_again(host: PrefectHost, studies: Studies, tmp_path: Path):
    command = [sys.executable, "-m", "tests.integration.outbox_process", str(studies.ledger_path), host.api_url]
    environment = {**os.environ, "PREFECT_CLIENT_MAX_RETRIES": "0"}

    def outbox(created: Callable[[], None]) -> None:
        with running(command, log=tmp_path / "outbox.log", environment=environment) as process:
            created()
            os.killpg(process.pid, signal.SIGKILL)

    outbox(lambda: studies.await_created(BEFORE_THE_FAULT))
    assert len(studies.run_ids()) < STUDIES
    outbox(studies.await_created)

    studies.assert_each_was_triggered_once()
