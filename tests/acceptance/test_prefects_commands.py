"""Prefect's own command line, as its documentation tells: what it retries goes on, what it cancels ends."""

from __future__ import annotations

from pathlib import Path

import pytest

from deployments.demo.studies import data_sets
from tests.acceptance.prefect_api import eventually
from tests.acceptance.site import Site, gated, node, receiver
from tests.services import unused_port

pytestmark = [pytest.mark.docker, pytest.mark.dcmtk, pytest.mark.prefect]


def test_a_retry_by_command_goes_on_where_the_run_failed(site: Site, tmp_path: Path) -> None:
    port = unused_port()
    with receiver(tmp_path / "up") as up:
        site.define("RetriedByCommand", "cp /input/* /output/", destinations=[up, node(port)])
        run_id, state = site.send_and_await("RetriedByCommand", count=3)
        assert state["name"] == "Failed"
        delivered = data_sets(tmp_path / "up")
        assert len(delivered) == 3
    # What was up is down now: a retry that sent there again would fail.
    with receiver(tmp_path / "down", port=port):
        site.prefect("flow-run", "retry", run_id)
        state = site.api.await_final(run_id)
        assert state["name"] == "Completed", state["message"]
        assert data_sets(tmp_path / "down") == delivered
    assert site.api.state_names(run_id).count("Running") == 2
    assert site.api.log(run_id).count("model 1 (busybox) starts") == 1


def test_a_run_that_is_cancelled_by_command_gives_its_container_and_its_slot_back(site: Site) -> None:
    site.define("CancelledByCommand", gated())
    site.define("Next", "true")
    site.send(site.study("CancelledByCommand"), site.study("CancelledByCommand"))
    cancelled, other = (run["id"] for run in site.api.await_runs("CancelledByCommand", 2))
    for run_id in (cancelled, other):
        site.await_gate(run_id)
    site.send(site.study("Next"))
    waiting = site.run_of("Next")
    assert site.api.run(waiting)["state"]["type"] == "SCHEDULED"

    site.prefect("flow-run", "cancel", cancelled)

    eventually(lambda: site.containers(cancelled), lambda found: not found, what="the container is gone")
    assert site.api.await_final(waiting)["name"] == "Completed"
    assert site.api.await_final(cancelled)["name"] == "Cancelled"
    assert len(site.containers(other)) == 1
    site.open_gate(other)
    assert site.api.await_final(other)["name"] == "Completed"
