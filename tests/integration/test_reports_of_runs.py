"""``dicomflow runs``, ``dicomflow queue`` and ``dicomflow priority`` on a real Prefect server."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.actions import WorkPoolUpdate
from prefect.client.schemas.objects import State, StateType
from prefect.states import Cancelled, Completed, Crashed, Failed, Running, Scheduled
from rich.console import Console

from deployments.apply import bring_into_step
from deployments.queue_report import print_queues, read_pools
from deployments.run_report import print_runs, read_runs
from deployments.state_choice import failed, not_over, state_choice
from flows_engine.definition.naming import study_tag, work_queue
from flows_engine.definition.schema import FlowDefinition
from tests import services
from tests.factories import run_parameters
from tests.fakes.definitions import flow

pytestmark = pytest.mark.prefect

HEAD, NECK = flow("Head", {"Modality": "CT"}), flow("Neck", {"Modality": "CT"})
STATES = {
    "waits": Scheduled(),
    "runs": Running(),
    "finished": State(type=StateType.RUNNING, name="Finished"),
    "sends": State(type=StateType.RUNNING, name="Sending"),
    "sent": Completed(message="1 model run, 2 instances delivered to ARCHIVE@127.0.0.1:104"),
    "failed": Failed(message="model 1 (busybox) ended with status 3"),
    "crashed": Crashed(message="its process is gone"),
    "cancelled": Cancelled(),
}


@pytest.fixture
def client(empty_prefect: str) -> Iterator[SyncPrefectClient]:
    with get_client(sync_client=True) as client:
        bring_into_step(client, [HEAD, NECK])
        yield client


@pytest.fixture
def make(client: SyncPrefectClient) -> Callable[..., str]:
    """Make a run; return its id."""
    deployments = {deployment.name: deployment.id for deployment in client.read_deployments()}

    def make(
        state: State | None = None,
        *,
        definition: FlowDefinition = HEAD,
        study: str = "0193e4c2",
        priority: int = 0,
        age_seconds: float = 0,
        **parameters: Any,
    ) -> str:
        run = client.create_flow_run_from_deployment(
            deployments[definition.name],
            name=f"{definition.name} {study}",
            tags=[study_tag(study)],
            work_queue_name=work_queue(priority),
            parameters=run_parameters(definition, study_id=study, **parameters),
            state=Scheduled(scheduled_time=datetime.now(UTC) - timedelta(seconds=age_seconds)),
        )
        if state is not None:
            client.set_flow_run_state(run.id, state, force=True)
        return str(run.id)

    return make


def printed(report: Callable[..., None], **options: Any) -> str:
    text = io.StringIO()
    report(Console(file=text, width=40), **options)
    return text.getvalue()


def runs(**options: Any) -> str:
    return printed(print_runs, **{"limit": 20, "states": None, "study_id": "", "flow": "", "as_json": False, **options})


def test_runs_are_listed_newest_first_with_their_codes(make, client: SyncPrefectClient):
    # Minutes apart: to make one takes a while, and their order is that of their arrival.
    ids = {
        make(state, age_seconds=60 * number, study=f"0193e4c2-000{number}"): state
        for number, state in enumerate(STATES.values())
    }

    heading, *lines = runs().splitlines()

    assert heading.split() == ["code", "state", "since", "flow", "reason", "run", "study", "message"]
    assert [line.split()[0] for line in lines] == ["0", "1", "2", "3", "4", "400", "400", "410"]
    assert [line.split()[1] for line in lines] == [state.name for state in STATES.values()]
    assert [next(run_id for run_id in ids if run_id in line) for line in lines] == list(ids)
    assert lines[5].rstrip().endswith("0193e4c2-0005  model 1 (busybox) ended with status 3")
    told = json.loads(runs(as_json=True))
    assert [(one["code"], one["run_id"]) for one in told] == [
        (int(line.split()[0]), run_id) for line, run_id in zip(lines, ids, strict=True)
    ]
    assert [run_id for line in runs(limit=2).splitlines()[1:] for run_id in ids if run_id in line] == [*ids][:2]


def test_runs_are_chosen_by_state_study_and_flow(make, client: SyncPrefectClient):
    for state in STATES.values():
        make(state)
    other = make(Scheduled(), definition=NECK, study="0194ffff", age_seconds=1)

    def names(**options: Any) -> list[str]:
        return sorted(line.state for line in read_runs(client, limit=50, **options))

    assert names(states=failed()) == ["Crashed", "Failed"]
    assert names(states=not_over()) == ["Finished", "Running", "Scheduled", "Scheduled", "Sending"]
    assert names(states=state_choice("running")) == ["Running"]
    assert names(states=state_choice("1")) == ["Running"]
    assert names(states=state_choice("3")) == ["Sending"]
    assert [line.run_id for line in read_runs(client, limit=50, study_id="0194ffff")] == [other]
    assert [line.run_id for line in read_runs(client, limit=50, flow="Neck")] == [other]
    assert runs(study_id="0195").strip() == "no run fits"
    assert json.loads(runs(study_id="0195", as_json=True)) == []


def test_a_long_list_is_read_page_by_page(make, client: SyncPrefectClient, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("deployments.run_report._PAGE", 2)
    ids = [make(age_seconds=60 * number) for number in range(5)]

    assert [line.run_id for line in read_runs(client, limit=50)] == ids
    assert [line.run_id for line in read_runs(client, limit=3)] == ids[:3]


@pytest.fixture
def worker(client: SyncPrefectClient, empty_prefect: str) -> Iterator[str]:
    """A worker that is online in the pool ``cpu``."""
    client.send_worker_heartbeat("cpu", "h1-cpu", heartbeat_interval_seconds=30)
    yield "h1-cpu"
    httpx.delete(f"{empty_prefect}/work_pools/cpu/workers/h1-cpu").raise_for_status()


def test_queues_tell_how_many_wait_and_since_when(make, client: SyncPrefectClient, worker: str):
    for age in (500, 20):
        make(priority=0, age_seconds=age)
    make(priority=5, age_seconds=3)
    make(Running())

    lines = printed(print_queues, own_slots={"h1-cpu": 2}, as_json=False).splitlines()

    cpu = lines.index("cpu: 1 running; 3 waiting; served by h1-cpu (2 slots)")
    assert lines[cpu + 1].split()[:3] == ["priority-5", "1", "waiting"]
    assert lines[cpu + 2].split()[:7] == ["priority-0", "2", "waiting", "the", "first", "for", "8"]
    assert "gpu: 0 running; 0 waiting; no worker serves this pool" in lines
    told = {pool["name"]: pool for pool in json.loads(printed(print_queues, own_slots={}, as_json=True))}
    assert [(queue["name"], queue["waiting"]) for queue in told["cpu"]["queues"]][:6] == [
        *(("priority-5", 1), ("priority-4", 0), ("priority-3", 0)),
        *(("priority-2", 0), ("priority-1", 0), ("priority-0", 2)),
    ]
    assert told["cpu"]["queues"][5]["oldest_seconds"] >= 500
    assert told["cpu"]["workers"] == [{"name": "h1-cpu", "slots": None}]


def test_a_pool_and_a_queue_that_are_paused_say_so(make, client: SyncPrefectClient):
    make(priority=3)
    queue = client.read_work_queue_by_name("priority-3", work_pool_name="cpu")
    client.update_work_queue(queue.id, is_paused=True)
    client.update_work_pool("cpu", WorkPoolUpdate(is_paused=True))
    try:
        text = printed(print_queues, own_slots={}, as_json=False)
    finally:
        client.update_work_queue(queue.id, is_paused=False)
        client.update_work_pool("cpu", WorkPoolUpdate(is_paused=False))

    (cpu,) = (line for line in text.splitlines() if line.startswith("cpu: "))
    (waiting,) = (line for line in text.splitlines() if "priority-3" in line)
    assert "; paused: nothing starts before it is resumed; " in cpu
    assert waiting.rstrip().endswith("paused: nothing in it starts before it is resumed")


def test_many_waiting_runs_are_no_more_work_than_few(make, client: SyncPrefectClient, monkeypatch: pytest.MonkeyPatch):
    request, asked = client.request, []

    def counted(method: str, path: Any, **values: Any) -> Any:
        asked.append(values.get("json", {}).get("limit"))
        return request(method, path, **values)

    monkeypatch.setattr(client, "request", counted)
    costs = []
    for _ in range(2):
        make(priority=2)
        asked.clear()
        read_pools(client, own_slots={}, now=datetime.now(UTC))
        costs.append(len(asked))

    assert costs[0] == costs[1]
    # No page of runs is read to count them.
    assert {limit for limit in asked if limit} <= {1}


def test_the_commands_end_with_what_a_person_can_do(make, empty_prefect: str, tmp_path: Path):
    waiting = make(priority=1)
    environment = services.prefect_environment(tmp_path, api_url=empty_prefect) | {
        "DATA_DIR": str(tmp_path),
        "CONF_DIR": str(tmp_path),
    }

    def dicomflow(*arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "deployments.cli", *arguments],
            env={**os.environ, **environment},
            cwd=services.ROOT,
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )

    moved = dicomflow("priority", waiting, "4")
    (old, new) = sorted(json.loads(dicomflow("runs", "--json").stdout), key=lambda run: -run["code"])
    refused = dicomflow("priority", "Tail", "4")

    assert (moved.returncode, moved.stderr) == (0, "")
    assert moved.stdout == f"run Head 0193e4c2 waits with priority 4 now, as run {new['run_id']}\n"
    assert (old["code"], old["run_id"], new["code"], new["priority"]) == (410, waiting, 0, 4)
    assert old["message"] == f"moved to the queue priority-4, as run {new['run_id']}"
    assert (refused.returncode, refused.stdout) == (1, "")
    assert refused.stderr == ("dicomflow: no run has a name that begins with 'Tail'; `dicomflow runs` lists them\n")
