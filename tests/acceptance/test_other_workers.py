"""Prefect's own worker types run our deployments: as processes of the host, and each run in a container of its own."""

from __future__ import annotations

import sys
import sysconfig
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas.actions import WorkPoolCreate
from prefect.workers.process import ProcessWorker
from prefect_docker.worker import DockerWorker

from tests import services
from tests.acceptance.prefect_api import eventually
from tests.acceptance.site import Site, shell_models
from tests.services import ROOT

pytestmark = [pytest.mark.docker, pytest.mark.dcmtk, pytest.mark.prefect]

NAME = "Elsewhere"
IN_THE_CONTAINER = "/everything"
"""Where a container sees DATA_DIR; the host has it elsewhere."""


@pytest.fixture(scope="module")
def study_id(site: Site) -> str:
    """A study that was processed in the ordinary way, and that other workers process again."""
    site.write_flow(NAME, models=shell_models("cat /input/* | wc -c > /output/size", "cat /input/size"))
    site.api.await_deployments(NAME)
    run_id, state = site.send_and_await(NAME)
    assert state["name"] == "Completed"
    return str(site.api.run(run_id)["parameters"]["study_id"])


def as_a_process(_site: Site) -> dict[str, Any]:
    return {}


def as_a_container(site: Site) -> dict[str, Any]:
    """Return the job variables of a run in a container that has nothing but the host's programs, and this project."""
    programs = {"/usr", "/lib", "/lib64", "/etc", sys.base_prefix, str(ROOT), str(Path(sys.executable).parent.parent)}
    settings = {name: site.environment[name] for name in ("STATIC_DIR", "FLOW_DIRECTORY", "CONF_DIR")}
    return {
        "image": "busybox",
        "image_pull_policy": "Never",
        "network_mode": "host",
        "auto_remove": True,
        "volumes": [
            *(f"{program}:{program}:ro" for program in sorted(programs) if Path(program).exists()),
            f"{site.root}:{site.root}:ro",
            f"{site.data_dir}:{IN_THE_CONTAINER}",
            "/var/run/docker.sock:/var/run/docker.sock",
        ],
        "command": f"{sys.executable} -m prefect.engine",
        "env": {
            **settings,
            "DATA_DIR": IN_THE_CONTAINER,
            "PYTHONPATH": str(ROOT),
            "PREFECT_API_URL": f"{site.ui_url}/api",
            "PREFECT_HOME": "/tmp/prefect",
        },
    }


@pytest.mark.parametrize(
    ("worker", "job_variables"),
    [(ProcessWorker, as_a_process), (DockerWorker, as_a_container)],
    ids=["process", "docker"],
)
def test_a_deployment_of_ours_is_run_by_prefects_own_worker(
    site: Site, study_id: str, tmp_path: Path, worker: Any, job_variables: Any
) -> None:
    received = (site.data_dir / "studies" / study_id / "input").rglob("*.dcm")
    size = str(sum(file.stat().st_size for file in received))
    pool = f"own-{worker.type}"
    deployed = site.api.deployment(NAME)
    environment = {**site.environment, "PREFECT_API_URL": f"{site.ui_url}/api", "PREFECT_WORKER_QUERY_SECONDS": "0.5"}
    environment["PATH"] = f"{sysconfig.get_path('scripts')}:{environment['PATH']}"
    with SyncPrefectClient(f"{site.ui_url}/api") as client:
        template = worker.get_default_base_job_template()
        client.create_work_pool(WorkPoolCreate(name=pool, type=worker.type, base_job_template=template))
        deployment_id = client.create_deployment(
            UUID(deployed["flow_id"]),
            name=f"{NAME} by {worker.type}",
            entrypoint=deployed["entrypoint"],
            parameters=deployed["parameters"],
            work_pool_name=pool,
            job_variables=job_variables(site),
        )
        run_id = str(client.create_flow_run_from_deployment(deployment_id, parameters={"study_id": study_id}).id)
        command = [sys.executable, "-m", "prefect", "worker", "start", "--pool", pool, "--type", worker.type]
        try:
            with services.running(command, log=tmp_path / "log", environment=environment):
                state = site.api.await_final(run_id)
                assert state["name"] == "Completed", f"{state['message']} {(tmp_path / 'log').read_text()}"
                site.api.log_until(run_id, size)  # the process may be sending it yet
        finally:
            client.delete_deployment(deployment_id)
            client.delete_work_pool(pool)
    assert (site.data_dir / "runs" / run_id / "model-1" / "output" / "size").read_text().strip() == size
    eventually(lambda: site.containers(run_id), lambda found: not found, what="its containers are gone")
