"""Runs that wait for their flow's limit, and runs that wait while their flow's definition goes away."""

from __future__ import annotations

from datetime import datetime
from typing import Any

import pytest

from tests.acceptance.prefect_api import eventually
from tests.acceptance.site import Site, gated, shell_models

pytestmark = [pytest.mark.docker, pytest.mark.dcmtk, pytest.mark.prefect]

# Left to itself, Prefect offers a run again half a minute after it has met the limit, less what its worker looks ahead.
_PREFECTS_OWN_PAUSE_SECONDS = 20


def _begun(site: Site, *run_ids: str) -> list[str]:
    """Return those of the runs that a worker has taken."""
    return [run_id for run_id in run_ids if any(state["type"] != "SCHEDULED" for state in site.api.states(run_id))]


def _moment(text: str) -> datetime:
    return datetime.fromisoformat(text)


def _state(site: Site, run_id: str, name: str) -> dict[str, Any]:
    (state,) = (state for state in site.api.states(run_id) if state["name"] == name)
    return state


def test_a_flow_at_its_limit_waits_in_its_place_and_lets_others_pass(site: Site) -> None:
    site.define("Limited", gated("true"), concurrency_limit=1, priority=5)
    site.define("Passing", "true")
    site.send(site.study("Limited"), site.study("Limited"), site.study("Limited"))
    runs = [run["id"] for run in site.api.await_runs("Limited", 3)]
    first = eventually(lambda: _begun(site, *runs), lambda begun: begun, what="one of the runs begins")[0]
    site.await_gate(first)

    _, state = site.send_and_await("Passing")

    assert state["name"] == "Completed"
    assert _begun(site, *runs) == [first]
    order = [first]
    for _ in range(2):
        site.open_gate(order[-1])
        site.api.await_final(order[-1])
        left = [run_id for run_id in runs if run_id not in order]
        order += eventually(lambda left=left: _begun(site, *left), lambda begun: begun, what="the next one begins")
        waited = _moment(_state(site, order[-1], "Pending")["timestamp"]) - _moment(site.api.run(order[-2])["end_time"])
        assert 0 <= waited.total_seconds() < _PREFECTS_OWN_PAUSE_SECONDS
        site.await_gate(order[-1])
    site.open_gate(order[-1])
    assert site.api.await_final(order[-1])["name"] == "Completed"
    # None was sent to the back: they began as they arrived.
    assert order == runs
    assert not [name for run_id in runs for name in site.api.state_names(run_id) if name == "AwaitingConcurrencySlot"]


def test_runs_whose_definition_is_removed_while_they_wait_say_so_and_are_run_or_cancelled(site: Site) -> None:
    path = site.write_flow("Leaving", models=shell_models(gated("echo as it was")), concurrency_limit=1)
    site.api.await_deployments("Leaving")
    site.send(site.study("Leaving"), site.study("Leaving"), site.study("Leaving"))
    runs = [run["id"] for run in site.api.await_runs("Leaving", 3)]
    first, second, third = runs
    site.await_gate(first)

    path.unlink()

    deployment = eventually(lambda: site.api.deployment("Leaving"), lambda now: now["paused"], what="it is paused")
    assert deployment["description"].startswith("**The definition of this flow is gone.**")
    assert "definition-gone" in deployment["tags"]
    tags = {run_id: "definition-gone" in site.api.run(run_id)["tags"] for run_id in runs}
    assert tags == {first: False, second: True, third: True}
    assert _begun(site, *runs) == [first]
    site.api.cancel(third)
    assert site.api.await_final(third)["name"] == "Cancelled"
    site.open_gate(first)
    site.await_gate(second)
    site.open_gate(second)
    for run_id in (first, second):
        assert site.api.await_final(run_id)["name"] == "Completed"
        site.api.log_until(run_id, "as it was")
    eventually(site.api.deployment_names, lambda names: "Leaving" not in names, what="it is gone from Prefect")
    assert [site.api.run(run_id)["state"]["name"] for run_id in runs] == ["Completed", "Completed", "Cancelled"]
