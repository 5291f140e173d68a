"""A person is quick: a run is retried while the process of its first attempt still says goodbye."""

from __future__ import annotations

import pytest

from tests.acceptance.site import Site, gated

pytestmark = [pytest.mark.docker, pytest.mark.dcmtk, pytest.mark.prefect]


def test_a_retry_at_once_stops_neither_the_worker_nor_what_else_it_runs(site: Site) -> None:
    site.define("Bystander", gated())
    site.define("Impatient", "exit 1")
    site.send(site.study("Bystander"))
    bystander = site.run_of("Bystander")
    site.await_gate(bystander)
    workers = site.processes("worker", "start")
    run_id, _ = site.send_and_await("Impatient")
    for attempts in (2, 3):
        site.api.retry(run_id)
        assert site.api.await_final(run_id)["name"] == "Failed"
        assert site.api.run(run_id)["run_count"] == attempts
    assert site.processes("worker", "start") == workers
    site.open_gate(bystander)
    assert site.api.await_final(bystander)["name"] == "Completed"
    assert "Crashed" not in site.api.state_names(bystander)
