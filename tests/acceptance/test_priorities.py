"""One slot, and more studies than it can take: what is urgent runs first, and what runs is left alone."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest

from tests.acceptance.prefect_api import eventually
from tests.acceptance.site import Site, gated

pytestmark = [pytest.mark.docker, pytest.mark.dcmtk, pytest.mark.prefect]

_FLOWS = {"Routine": 0, "Soon": 2, "Urgent": 5}


@pytest.fixture
def one_slot(site: Site) -> Iterator[None]:
    """The pool ``cpu`` runs one at a time, as somebody sets it in the UI."""
    site.api.change_work_pool("cpu", concurrency_limit=1)
    yield
    site.api.change_work_pool("cpu", concurrency_limit=None)


@pytest.mark.usefixtures("one_slot")
def test_waiting_studies_run_by_priority_then_by_arrival_and_one_is_moved(site: Site) -> None:
    site.define("TakesTheSlot", gated("true"))
    for name, priority in _FLOWS.items():
        site.define(name, "true", priority=priority)
    site.send(site.study("TakesTheSlot"))
    busy = site.run_of("TakesTheSlot")
    site.await_gate(busy)
    for flow in ("Routine", "Soon", "Routine", "Urgent", "Soon", "Routine"):
        so_far = len(site.api.runs(flow))
        site.send(site.study(flow))
        site.api.await_runs(flow, so_far + 1)
    runs = {name: [run["id"] for run in site.api.runs(name)] for name in _FLOWS}

    moved = site.command("priority", runs["Routine"][2], "4")

    assert moved.returncode == 0, moved.stderr
    hurried = moved.stdout.split()[-1]
    (cpu,) = (pool for pool in json.loads(site.command("queue", "--json").stdout) if pool["name"] == "cpu")
    waiting = {queue["name"]: queue["waiting"] for queue in cpu["queues"] if queue["waiting"]}
    assert waiting == {"priority-5": 1, "priority-4": 1, "priority-2": 2, "priority-0": 2}
    assert (cpu["running"], cpu["concurrency_limit"], len(cpu["workers"])) == (1, 1, 1)
    assert site.api.run(busy)["state"]["name"] == "Running"
    site.open_gate(busy)
    expected = [busy, *runs["Urgent"], hurried, *runs["Soon"], *runs["Routine"][:2]]
    for run_id in expected:
        assert site.api.await_final(run_id)["name"] == "Completed"
    assert sorted(expected, key=lambda run_id: str(site.api.run(run_id)["start_time"])) == expected
    assert site.api.run(runs["Routine"][2])["state"]["name"] == "Cancelled"
    assert site.api.log(busy).count("model 1 (busybox) starts") == 1
    # The study is told as it was triggered; its runs tell where it is.
    study_id = site.api.run(hurried)["parameters"]["study_id"]
    eventually(site.study_lines, lambda lines: any(study_id in line for line in lines), what="the study is listed")
    codes = [run["code"] for run in json.loads(site.command("runs", "--study", study_id, "--json").stdout)]
    assert sorted(codes) == [4, 410]
