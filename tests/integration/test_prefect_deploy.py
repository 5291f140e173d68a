"""``prefect deploy --all`` and ``dicomflow deploy`` are two doors to the same room, on a real server."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.actions import DeploymentUpdate, WorkPoolCreate
from prefect.client.schemas.objects import ConcurrencyLimitStrategy, ConcurrencyOptions

from tests import services
from tests.factories import flow_keys, model_keys, run_parameters

pytestmark = pytest.mark.prefect

_OF_THE_DAY = {"id", "created", "updated", "last_polled", "status", "work_queue_id"}
Door = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def client(empty_prefect: str) -> Iterator[SyncPrefectClient]:
    services.empty_prefect_server(empty_prefect, pools=True)
    with get_client(sync_client=True) as client:
        yield client


@pytest.fixture
def flows(tmp_path: Path) -> Path:
    """The site's folder: what its flows say is all that a deployment may hold, and hard to hand on unharmed."""
    folder = tmp_path / "flows"
    folder.mkdir()
    placeholders = ["sh", "-c", "echo {{ PATH }} {{$HOME}} {{ prefect.variables.x }}\n\n  {{ dicomflow.braces }}\n"]
    definitions = [
        flow_keys(name="plain", triggers=[{"Modality": "CT"}]),
        flow_keys(
            name='Kopf-Hals 🩻 "A"',
            version="1.10",
            priority=5,
            concurrency_limit=3,
            models=[
                model_keys(gpu="a100", docker_kwargs={"command": placeholders, "environment": {"N": "0", "Y": "no"}})
            ],
            destinations=[{"host": "pacs", "port": 104, "ae_title": "PACS"}],
        ),
        flow_keys(name="x" * 200, triggers=[], priority=2, return_to_sender_on_port=[104]),
    ]
    for number, keys in enumerate(definitions):
        (folder / f"{number}.yaml").write_text(yaml.safe_dump(keys, allow_unicode=True))
    return folder


@pytest.fixture
def environment(empty_prefect: str, flows: Path, tmp_path: Path) -> dict[str, str]:
    (tmp_path / "conf.d").mkdir()
    return {
        **services.prefect_environment(tmp_path, api_url=empty_prefect),
        "CONF_DIR": str(tmp_path / "conf.d"),
        "DATA_DIR": str(tmp_path / "data"),
        "FLOW_DIRECTORY": str(flows),
        "COLUMNS": "300",
    }


@pytest.fixture
def dicomflow(environment: Mapping[str, str], tmp_path: Path) -> Door:
    return lambda *arguments: _run("deployments.cli", *arguments, environment=environment, folder=tmp_path)


@pytest.fixture
def prefect(environment: Mapping[str, str], tmp_path: Path) -> Door:
    """Prefect's own command, typed in some folder."""

    def run(*arguments: str, folder: Path = tmp_path) -> subprocess.CompletedProcess[str]:
        return _run("prefect", "--no-prompt", *arguments, environment=environment, folder=folder)

    return run


def _run(module: str, *arguments: str, environment: Mapping[str, str], folder: Path):
    # As the installed commands do, and not as `python -m` does: the current folder is no place to import from.
    return subprocess.run(
        [sys.executable, "-P", "-m", module, *arguments],
        env={**environment, "PYTHONPATH": str(services.ROOT)},
        cwd=folder,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )


def everything(client: SyncPrefectClient) -> dict[str, Any]:
    """Return all that the API tells of deployments, pools and queues, less what depends on the time."""
    found = client.request("POST", "/deployments/filter", json={}).json()
    deployments = {}
    for deployment in found:
        limit = deployment.pop("global_concurrency_limit")
        deployments[deployment["name"]] = {
            **{field: value for field, value in deployment.items() if field not in _OF_THE_DAY},
            "limit": limit and {field: limit[field] for field in ("limit", "active", "slot_decay_per_second")},
        }
    pools = {
        pool.name: (pool.type, pool.base_job_template, queues(client, pool.name)) for pool in client.read_work_pools()
    }
    return {"deployments": deployments, "pools": pools}


def queues(client: SyncPrefectClient, pool: str) -> list[str]:
    found = client.read_work_queues(work_pool_name=pool)
    return [queue.name for queue in sorted(found, key=lambda queue: queue.priority or 0)]


IN_ORDER = [*(f"priority-{priority}" for priority in (5, 4, 3, 2, 1, 0)), "background", "default"]


def test_both_doors_make_the_same_in_every_field(
    client: SyncPrefectClient, empty_prefect: str, dicomflow: Door, prefect: Door, tmp_path: Path
):
    assert dicomflow("deploy").returncode == 0
    by_us = everything(client)
    assert len(by_us["deployments"]) == 4
    assert {name: names for name, (_, _, names) in by_us["pools"].items()} == {
        **dict.fromkeys(("cpu", "gpu", "gpu-a100"), IN_ORDER),
        "gateway": ["default"],
    }

    services.empty_prefect_server(empty_prefect, pools=True)
    file = tmp_path / "site.yaml"
    assert dicomflow("deploy", "--write", str(file)).returncode == 0
    assert everything(client) == {"deployments": {}, "pools": {}}
    assert dicomflow("deploy", "--pools").returncode == 0
    assert everything(client) == {"deployments": {}, "pools": by_us["pools"]}
    made = prefect("deploy", "--all", "--prefect-file", str(file))
    assert made.returncode == 0, made.stdout + made.stderr
    assert everything(client) == by_us
    assert dicomflow("deploy").stdout == "all 3 deployments are as their definitions say\n"

    _spoil(client)
    assert everything(client) != by_us
    again = prefect("deploy", "--all", "--prefect-file", str(file))
    assert again.returncode == 0, again.stdout + again.stderr
    assert everything(client) == by_us


def _spoil(client: SyncPrefectClient) -> None:
    """Change by hand what a person can change in the UI."""
    for deployment in client.read_deployments():
        client.update_deployment(
            deployment.id,
            DeploymentUpdate(
                paused=True,
                version="0",
                description="by hand",
                tags=["dicomflow"],
                parameters={},
                concurrency_limit=1,
                concurrency_options=ConcurrencyOptions(collision_strategy=ConcurrencyLimitStrategy.CANCEL_NEW),
                job_variables={"env": {"A": "b"}},
                pull_steps=[{"prefect.deployments.steps.set_working_directory": {"directory": "nowhere"}}],
            ),
        )


def test_in_the_repository_one_pool_by_prefects_own_means_is_enough_and_a_stock_worker_can_run_what_was_made(
    client: SyncPrefectClient, prefect: Door, tmp_path: Path
):
    without = prefect("deploy", "--all", folder=services.ROOT)
    # Prefect's order, for which `dicomflow deploy --pools` is there: it looks for the pool before it runs any step.
    assert without.returncode == 1
    assert "work pool 'cpu' which does not exist" in " ".join(without.stdout.split())

    client.create_work_pool(WorkPoolCreate(name="cpu", type="process"))
    done = prefect("deploy", "--all", folder=services.ROOT)
    assert done.returncode == 0, done.stdout + done.stderr
    deployed = {found.name: found for found in client.read_deployments()}
    assert sorted(deployed) == ["FiveFolds", "StaticMounts", "TwoContainers", "smallest", "study"]
    assert queues(client, "cpu") == queues(client, "gpu") == IN_ORDER

    run = client.create_flow_run_from_deployment(
        deployed["smallest"].id,
        parameters=run_parameters(),
    )
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    worker = prefect("worker", "start", "--pool", "cpu", "--type", "process", "--run-once", folder=elsewhere)
    state = client.read_flow_run(run.id).state
    # The flow was found, and looked for the study, of which this site knows nothing.
    assert state is not None
    assert state.name == "Failed", worker.stdout + worker.stderr
    assert "0193e4c2-7a54-7cc3-98c4-dc0c0c070001" in (state.message or "")
