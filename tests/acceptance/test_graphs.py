"""Flows whose models are not in a row: side by side, joined, failed and retried in part, cancelled."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.acceptance.prefect_api import eventually
from tests.acceptance.site import Site, gated, receiver
from tests.factories import model_keys
from tests.services import ROOT

pytestmark = [pytest.mark.docker, pytest.mark.dcmtk, pytest.mark.prefect]


def model(command: str, *, reads: dict[str, str], writes: str) -> dict[str, Any]:
    return model_keys(
        docker_kwargs={"command": ["sh", "-c", command]}, input_mounts=reads, output_mounts={writes: "/output"}
    )


def test_the_example_of_five_folds_sends_what_the_join_leaves(site: Site, tmp_path: Path) -> None:
    example = yaml.safe_load((ROOT / "flow_definitions" / "five-folds.yaml").read_text())
    for keys in example["models"]:
        keys["pull_before_exec"] = False
    del example["name"], example["triggers"]
    with receiver(tmp_path / "archive") as archive:
        site.write_flow("Folded", **{**example, "destinations": [archive]})
        site.api.await_deployments("Folded")
        run_id, state = site.send_and_await("Folded", count=3)

    assert state["name"] == "Completed"
    assert state["message"].startswith("6 models run, 3 instances delivered")
    assert len(list((tmp_path / "archive").iterdir())) == 3
    log = site.api.log_until(run_id, "fold 4 of 3 files")
    assert [f"fold {fold} of 3 files" in log for fold in range(5)] == [True] * 5


def test_branches_go_on_side_by_side_and_a_retry_runs_what_is_missing(site: Site) -> None:
    left = model(gated("true"), reads={"src": "/input"}, writes="left")
    right = model(gated("test -e /output/mended"), reads={"src": "/input"}, writes="right")
    join = model("ls /left /right", reads={"left": "/left", "right": "/right"}, writes="dst")
    site.write_flow("Forked", models=[join, left, right])
    site.api.await_deployments("Forked")
    site.send(site.study("Forked"))
    run_id = site.run_of("Forked")
    site.await_gate(run_id, model=2)
    site.await_gate(run_id, model=3)
    assert len(site.containers(run_id, stopped_too=False)) == 2

    site.open_gate(run_id, model=3)
    eventually(lambda: site.containers(run_id), lambda found: len(found) == 1, what="one branch has failed")
    site.open_gate(run_id, model=2)
    state = site.api.await_final(run_id)
    assert state["name"] == "Failed"
    assert state["message"].startswith("model 3 (busybox) exited with code 1")

    site.api.retry(run_id)
    site.await_gate(run_id, model=3)
    (site.data_dir / "runs" / run_id / "model-3" / "output" / "mended").touch()
    site.open_gate(run_id, model=3)
    assert site.api.await_final(run_id)["name"] == "Completed"
    log = site.api.log_until(run_id, "model 1 (busybox) starts")
    assert [log.count(f"model {number} (busybox) starts") for number in (1, 2, 3)] == [1, 1, 2]


def test_a_cancelled_run_stops_all_of_its_branches(site: Site) -> None:
    branches = [model(gated("true"), reads={"src": "/input"}, writes=name) for name in ("one", "two")]
    join = model("true", reads={"one": "/one", "two": "/two"}, writes="dst")
    site.write_flow("Stopped", models=[*branches, join])
    site.api.await_deployments("Stopped")
    site.send(site.study("Stopped"))
    run_id = site.run_of("Stopped")
    for number in (1, 2):
        site.await_gate(run_id, model=number)

    site.api.cancel(run_id)

    assert site.api.await_final(run_id)["name"] == "Cancelled"
    eventually(lambda: site.containers(run_id), lambda found: not found, what="its containers are gone")
    assert not any("model 3" in line for line in site.api.log(run_id))
