"""``dicomflow up`` as a person starts it: what it says, how it stops, and what a power cut leaves."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.acceptance.prefect_api import eventually
from tests.acceptance.site import Site, gated, processes_with, shell_models, site_environment
from tests.factories import leaked_canaries

pytestmark = [pytest.mark.docker, pytest.mark.dcmtk, pytest.mark.prefect]


@contextmanager
def _up(site: Site, output: Path) -> Iterator[subprocess.Popen[bytes]]:
    """Run ``dicomflow up`` and return when it says that everything runs; on the way out nothing of it is left."""
    with output.open("wb") as file:
        process = subprocess.Popen(
            [sys.executable, "-m", "deployments.cli", "up"],
            env=site.environment,
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        eventually(
            lambda: (process.poll(), output.read_text()),
            lambda seen: seen[0] is not None or "Ctrl-C stops everything" in seen[1],
            what="everything runs",
        )
        assert process.poll() is None, output.read_text()
        yield process
    finally:
        _cut_the_power(site)
        process.wait()


def _cut_the_power(site: Site) -> None:
    """Kill everything of a site at once, as a power cut does; no part gets to tell or to stop another one."""
    left = processes_with(f"DATA_DIR={site.data_dir}")
    for number in (signal.SIGSTOP, signal.SIGKILL):
        for pid in left:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)
    eventually(lambda: processes_with(f"DATA_DIR={site.data_dir}"), lambda pids: not pids, what="all are dead")


def _eventually_over(process: subprocess.Popen[bytes]) -> int:
    eventually(process.poll, lambda status: status is not None, what="dicomflow up ends")
    return int(process.returncode)


def test_up_survives_a_power_cut_and_stops_without_a_trace(tmp_path: Path) -> None:
    site = Site(site_environment(tmp_path), root=tmp_path)
    token = "head -c 36 /proc/sys/kernel/random/uuid > /output/token"
    site.write_flow("Cut", models=shell_models(token, gated()))
    site.write_flow("Waits", models=shell_models("echo waited"))
    with _up(site, tmp_path / "first.txt"):
        said = (tmp_path / "first.txt").read_text()
        assert f"Prefect UI   {site.ui_url}\n" in said
        assert f"receiver     STORESCP at 127.0.0.1:{site.ae_port}\n" in said
        assert "flows        Cut, Waits" in said
        site.send(site.study("Cut"), site.study("Cut"))
        cut = [run["id"] for run in site.api.await_runs("Cut", 2)]
        for run_id in cut:
            site.await_gate(run_id, model=2)
            site.api.log_until(run_id, "model 2 (busybox) starts")
        tokens = [_token(site, run_id) for run_id in cut]
        site.send(site.study("Waits"))
        _cut_the_power(site)
    for run_id in cut:
        (container,) = site.containers(run_id, stopped_too=False)  # the engine did not notice
        assert container.labels["dicomflow.step"] == "2"
    with _up(site, tmp_path / "second.txt") as process:
        for run_id in cut:
            eventually(
                lambda run_id=run_id: site.api.state_names(run_id),
                lambda names: "AwaitingRetry" in names,
                what="what was cut off is taken up again",
            )
            site.await_gate(run_id, model=2)
            site.open_gate(run_id, model=2)
        for run_id in (*cut, site.run_of("Waits")):
            assert site.api.await_final(run_id)["name"] == "Completed"
        assert [_token(site, run_id) for run_id in cut] == tokens
        for run_id in cut:
            assert site.api.log(run_id).count("model 1 (busybox) starts") == 1
        assert len(site.api.runs()) == 3
        assert [line.split().count("triggered") for line in site.study_lines()] == [1, 1, 1]

        busy = site.command("up")
        assert busy.returncode == 1
        assert busy.stderr.count("\n") == 1
        assert f"DATA_DIR: another `dicomflow up` is using {site.data_dir}" in busy.stderr

        site.send(site.study("Cut"))
        last = site.api.await_runs("Cut", 3)[2]["id"]
        site.await_gate(last, model=2)
        os.kill(process.pid, signal.SIGTERM)
        assert _eventually_over(process) == 0
        assert processes_with(f"DATA_DIR={site.data_dir}") == []
        assert site.containers(last) == []
        assert [port for port in (site.ae_port, site.api_port) if _listens(port)] == []
    assert (tmp_path / "second.txt").read_text().endswith("stopped.\n")
    assert leaked_canaries(site.service_logs() + (tmp_path / "second.txt").read_text()) == []


def _token(site: Site, run_id: str) -> str:
    return (site.data_dir / "runs" / run_id / "model-1" / "output" / "token").read_text()


def _listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0
