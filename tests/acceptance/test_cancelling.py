"""A person cancels a run: its container ends within seconds, and nothing else does."""

from __future__ import annotations

import time

import pytest

from tests.acceptance.prefect_api import eventually
from tests.acceptance.site import Site, gated

pytestmark = [pytest.mark.docker, pytest.mark.dcmtk, pytest.mark.prefect]


def test_a_cancelled_run_stops_its_container(site: Site) -> None:
    site.define("Cancelled", gated())
    site.send(site.study("Cancelled"))
    run_id = site.run_of("Cancelled")
    site.await_gate(run_id)
    assert len(site.containers(run_id)) == 1
    site.api.cancel(run_id)
    asked = time.monotonic()
    eventually(lambda: site.containers(run_id), lambda found: not found, what="the container is gone")
    assert time.monotonic() - asked < 30
    assert site.api.await_final(run_id)["name"] == "Cancelled"
    assert "Completed" not in site.api.state_names(run_id)
