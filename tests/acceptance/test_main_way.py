"""A study comes in by C-STORE, two containers run on it, the result arrives at DCMTK's storescp."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import httpx
import pydicom
import pytest

from deployments.demo.studies import data_sets
from flows_engine.definition.naming import instance_tag
from flows_engine.handoff.installation import instance_id
from tests.acceptance.site import Site, gated, receiver, shell_models
from tests.factories import as_rle

pytestmark = [pytest.mark.docker, pytest.mark.dcmtk, pytest.mark.prefect]

_FIRST = gated(
    "echo interfaces: $(ls /sys/class/net); touch /input/x && echo written || echo input cannot be written;"
    " for n in 1 2 3 4 5 6 7 8 9; do echo line $n of container $CONTAINER_ORDER; done;"
    " mkdir /output/deep; cp -r /input/. /output/deep/"
)
_SECOND = "echo container $CONTAINER_ORDER; cp -r /input/. /output/"


@dataclass(frozen=True, kw_only=True)
class Way:
    """What was seen of the one run, while it ran and afterwards."""

    run_id: str
    state: dict[str, Any]
    sent: dict[str, bytes]
    delivered: dict[str, bytes]
    containers_meanwhile: list[Any]
    destination: dict[str, Any]


@pytest.fixture(scope="module")
def way(site: Site, tmp_path_factory: pytest.TempPathFactory) -> Way:
    folder = tmp_path_factory.mktemp("way")
    models = shell_models(_FIRST, _SECOND)
    for number, model in enumerate(models):
        model["docker_kwargs"]["environment"] = {"CONTAINER_ORDER": number}
    with receiver(folder / "delivered") as destination:
        site.write_flow("Way", version="1.02", priority=4, models=models, destinations=[destination])
        site.api.await_deployments("Way")
        files = site.study("Way", count=20)
        as_rle(pydicom.dcmread(files[-1])).save_as(files[-1])
        site.send(files)
        run_id = site.run_of("Way")
        site.await_gate(run_id)
        containers = site.containers(run_id)
        site.open_gate(run_id)
        state = site.api.await_final(run_id)
        site.api.log_until(run_id, "container 1")
        delivered = data_sets(folder / "delivered")
    return Way(
        run_id=run_id,
        state=state,
        sent=data_sets(files[0].parent),
        delivered=delivered,
        containers_meanwhile=containers,
        destination=destination,
    )


def test_every_instance_arrives_byte_for_byte(way: Way) -> None:
    assert len(way.sent) == 20
    assert way.delivered == way.sent


def test_the_states_are_those_of_the_dashboard_in_their_order(site: Site, way: Way) -> None:
    names = site.api.state_names(way.run_id)
    assert names[names.index("Running") :] == ["Running", "Finished", "Sending", "Completed"]
    assert set(names[: names.index("Running")]) <= {"Scheduled", "Pending", "Submitting", "Late"}
    assert way.state["message"] == f"2 models run, 20 instances delivered to ARCHIVE@127.0.0.1:{_port(way)}"


def test_each_model_and_each_destination_is_a_task_run(site: Site, way: Way) -> None:
    tasks = {task["name"]: task["state_name"] for task in site.api.task_runs(way.run_id)}
    assert tasks == {
        "model 1 (busybox)": "Completed",
        "model 2 (busybox)": "Completed",
        "check output": "Completed",
        f"send to ARCHIVE at 127.0.0.1:{_port(way)}": "Completed",
    }


def test_the_log_of_the_containers_is_the_log_of_the_run(site: Site, way: Way) -> None:
    lines = site.api.log(way.run_id)
    printed = [line for line in lines if "container" in line and ("line" in line or line.startswith("container"))]
    assert printed == [*(f"line {number} of container 0" for number in range(1, 10)), "container 1"]


def test_a_container_has_no_network_and_cannot_change_its_input(site: Site, way: Way) -> None:
    lines = site.api.log(way.run_id)
    assert "interfaces: lo" in lines
    assert "touch: /input/x: Read-only file system" in lines
    assert "input cannot be written" in lines


def test_containers_are_labelled_while_they_run_and_gone_afterwards(site: Site, way: Way) -> None:
    (container,) = way.containers_meanwhile
    study_id = site.api.run(way.run_id)["parameters"]["study_id"]
    labels = {name: value for name, value in container.labels.items() if name.startswith("dicomflow.")}
    assert labels.pop("dicomflow.instance")
    assert labels == {
        "dicomflow.run": way.run_id,
        "dicomflow.study": study_id,
        "dicomflow.step": "1",
        "dicomflow.task": f"{way.run_id}/1",
    }
    assert container.attrs["HostConfig"]["NetworkMode"] == "none"
    assert site.containers(way.run_id) == []


def test_the_run_is_found_by_its_tags_and_waits_in_the_queue_of_its_priority(site: Site, way: Way) -> None:
    run = site.api.run(way.run_id)
    assert set(run["tags"]) == {
        "dicomflow",
        "version:1.02",
        "priority:4",
        instance_tag(instance_id(site.data_dir)),
        f"study:{run['parameters']['study_id']}",
    }
    assert (run["work_pool_name"], run["work_queue_name"]) == ("cpu", "priority-4")
    assert run["parameters"]["sender"]["ae_title"] == "DEMO"
    assert run["parameters"]["definition"]["version"] == "1.02"


def test_the_users_interface_is_served_on_loopback(site: Site, way: Way) -> None:
    page = httpx.get(site.ui_url, follow_redirects=True)
    assert page.is_success
    assert "<title>Prefect" in page.text


def _port(way: Way) -> int:
    port: int = way.destination["port"]
    return port
