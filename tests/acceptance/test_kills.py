"""Something is killed while studies are under way: nothing acknowledged is lost, and no finished model runs again."""

from __future__ import annotations

import contextlib
import os
import signal
import threading

import httpx
import pytest

from tests.acceptance.prefect_api import eventually
from tests.acceptance.site import Site, gated
from tests.services import wait_until

pytestmark = [pytest.mark.docker, pytest.mark.dcmtk, pytest.mark.prefect]


def _kill(pid: int) -> None:
    os.kill(pid, signal.SIGKILL)


def test_a_gateway_that_is_killed_while_studies_come_in_loses_none_that_was_acknowledged(site: Site) -> None:
    site.define("GatewayKilled", "true")
    studies = [site.study("GatewayKilled", count=30) for _ in range(3)]
    acknowledged = []

    def send_one_after_the_other() -> None:
        for study in studies:
            with contextlib.suppress(RuntimeError):
                site.send(study)
                acknowledged.append(study)

    lines = len(site.study_lines())
    sending = threading.Thread(target=send_one_after_the_other)
    (gateway,) = site.processes("cli gateway")
    sending.start()
    wait_until(lambda: len(acknowledged) >= 1, seconds=30, what="a study is acknowledged")
    _kill(gateway)
    sending.join()
    wait_until(lambda: site.processes("cli gateway") not in ([], [gateway]), seconds=60, what="the gateway is back")
    runs = site.api.await_runs("GatewayKilled", len(acknowledged))
    assert 1 <= len(acknowledged) < 3 or len(runs) == 3
    told = eventually(
        site.study_lines, lambda now: len(now) > lines and "received" not in now[0].split(), what="all are decided"
    )
    assert len([line for line in told[: len(told) - lines] if "triggered" in line]) == len(runs)
    for run in runs:
        assert site.api.await_final(run["id"])["name"] == "Completed"
    assert len({run["parameters"]["study_id"] for run in runs}) == len(runs)


def test_a_study_that_comes_while_prefect_is_down_is_triggered_once_it_is_back(site: Site) -> None:
    site.define("PrefectKilled", "true")
    servers = site.processes("server", "start")
    for pid in servers:
        _kill(pid)
    wait_until(lambda: not _healthy(site), seconds=30, what="the server is down")
    site.send(site.study("PrefectKilled"))
    eventually(lambda: _healthy(site), bool, what="the server is back")
    run_id = site.run_of("PrefectKilled")
    assert site.api.await_final(run_id)["name"] == "Completed"
    assert len(site.api.runs("PrefectKilled")) == 1


def test_a_run_whose_process_is_killed_is_shown_as_crashed_and_goes_on_by_a_retry(site: Site) -> None:
    site.define("RunKilled", "head -c 36 /proc/sys/kernel/random/uuid > /output/token", gated())
    site.send(site.study("RunKilled"))
    run_id = site.run_of("RunKilled")
    site.await_gate(run_id, model=2)
    token = site.data_dir / "runs" / run_id / "model-1" / "output" / "token"
    first = token.read_text()
    site.api.log_until(run_id, "model 2 (busybox) starts")  # what it has not sent yet dies with it
    _kill(int(site.api.run(run_id)["infrastructure_pid"]))
    state = site.api.await_final(run_id)
    assert state["name"] == "Crashed"
    assert state["message"]
    eventually(lambda: site.containers(run_id), lambda found: not found, what="its container is removed")
    site.api.retry(run_id)
    site.await_gate(run_id, model=2)
    site.open_gate(run_id, model=2)
    assert site.api.await_final(run_id)["name"] == "Completed"
    assert token.read_text() == first
    assert site.api.log(run_id).count("model 1 (busybox) starts") == 1


def test_a_run_goes_on_while_its_worker_is_killed(site: Site) -> None:
    site.define("WorkerKilled", gated())
    site.send(site.study("WorkerKilled"))
    run_id = site.run_of("WorkerKilled")
    site.await_gate(run_id)
    (worker,) = site.processes("worker", "start", "cpu")
    _kill(worker)
    wait_until(
        lambda: site.processes("worker", "start", "cpu") not in ([], [worker]), seconds=60, what="the worker is back"
    )
    site.open_gate(run_id)
    assert site.api.await_final(run_id)["name"] == "Completed"
    log = site.api.log_until(run_id, "Finished in state Completed('1 model run, nothing to be sent')")
    assert log.count("model 1 (busybox) starts") == 1


def _healthy(site: Site) -> bool:
    try:
        return httpx.get(f"{site.ui_url}/api/health", timeout=5).is_success
    except httpx.TransportError:
        return False
