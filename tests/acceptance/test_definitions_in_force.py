"""Definitions change while everything runs: nothing is restarted, and a run keeps what it was made with."""

from __future__ import annotations

import pytest

from tests.acceptance.prefect_api import eventually
from tests.acceptance.site import Site, gated, shell_models

pytestmark = [pytest.mark.docker, pytest.mark.dcmtk, pytest.mark.prefect]


def test_waiting_runs_keep_their_definition_and_start_by_priority(site: Site) -> None:
    site.define("Occupies", gated("true"))
    site.define("Low", "echo low as it was", priority=0)
    site.define("High", "echo high", priority=5)
    site.send(site.study("Occupies"), site.study("Occupies"))
    occupying = [run["id"] for run in site.api.await_runs("Occupies", 2)]
    for run_id in occupying:
        site.await_gate(run_id)
    site.send(site.study("Low"))
    low = site.run_of("Low")
    site.send(site.study("High"))
    high = site.run_of("High")
    assert [site.api.run(run_id)["work_queue_name"] for run_id in (low, high)] == ["priority-0", "priority-5"]
    digest = site.api.deployment("Low")["parameters"]
    site.write_flow("Low", models=shell_models("echo low as it is now"))
    eventually(lambda: site.api.deployment("Low")["parameters"], lambda now: now != digest, what="Low is deployed anew")
    for run_id in occupying[:1]:
        site.open_gate(run_id)
    for run_id in (high, low):
        assert site.api.await_final(run_id)["name"] == "Completed"
    site.open_gate(occupying[1])
    assert site.api.run(high)["start_time"] < site.api.run(low)["start_time"]
    log = site.api.log_until(low, "low as it was")
    assert "low as it is now" not in log
    assert site.api.await_final(occupying[1])["name"] == "Completed"


def test_a_file_that_changes_or_goes_takes_effect_without_a_restart(site: Site) -> None:
    gateway = site.processes("cli gateway")
    site.define("Changing", "echo first")
    run_id, _ = site.send_and_await("Changing")
    site.api.log_until(run_id, "first")
    before = site.api.deployment("Changing")["version"]
    site.write_flow("Changing", version="2", models=shell_models("echo second"))
    eventually(lambda: site.api.deployment("Changing")["version"], lambda now: now != before, what="it is deployed")
    site.send(site.study("Changing"))
    second = site.api.await_runs("Changing", 2)[1]
    assert site.api.await_final(second["id"])["name"] == "Completed"
    assert "second" in site.api.log_until(second["id"], "second")
    (site.flows / "Changing.yaml").unlink()
    eventually(site.api.deployment_names, lambda names: "Changing" not in names, what="it is gone from Prefect")
    lines = len(site.study_lines())
    site.send(site.study("Changing"))
    assert "no-match" in site.await_decision(more_than=lines)
    assert len(gateway) == 1
    assert site.processes("cli gateway") == gateway


def test_a_bad_file_is_reported_once_and_its_last_good_version_fires(site: Site) -> None:
    site.define("Spoilt", "echo still here")
    path = site.flows / "Spoilt.yaml"
    good = path.read_text()
    path.write_text(good + 'version: "1.02\n')
    log = site.logs / "gateway.log"
    told = eventually(
        lambda: [line for line in log.read_text().splitlines() if str(path) in line],
        lambda lines: any("last good version" in line for line in lines),
        what="the bad file is reported",
    )
    assert len(told) == 2
    assert f"{path}:" in told[0]
    run_id, state = site.send_and_await("Spoilt")
    assert state["name"] == "Completed"
    site.api.log_until(run_id, "still here")
    assert [line for line in log.read_text().splitlines() if str(path) in line] == told
    checked = site.command("check", str(path))
    assert (checked.returncode, checked.stdout) == (1, "")
    path.write_text(good)
