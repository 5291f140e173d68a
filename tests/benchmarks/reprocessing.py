"""Ten thousand stored studies, tried against a definition and processed again.

``python -m tests.benchmarks.reprocessing``.

The records are as large as those of a CT of a hundred slices. A request in bulk is let go on until as many runs wait as
may, and is stopped then.
"""

from __future__ import annotations

import io
import os
import platform
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from prefect.client.orchestration import SyncPrefectClient
from rich.console import Console

from deployments.backtest_command import print_backtest
from dicom_gateway.reprocessing import MOST_WAITING
from dicom_gateway.run_history import PrefectRunHistory
from flows_engine.handoff.site_settings import load_site_settings
from flows_engine.handoff.study_store import Fingerprint, StudyStore, TagColumn
from tests.integration.reprocess_site import ReprocessSite
from tests.prefect_host import PrefectHost
from tests.services import ROOT, prefect_environment, wait_until

_STUDIES = 10_000
_INSTANCES = 100
_WATCHED_SECONDS = 20.0
_SINCE = "2024-01-01"


def main() -> None:
    """Measure and print."""
    print(f"Python {platform.python_version()}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}", flush=True)
    with (
        tempfile.TemporaryDirectory(prefix="dicomflow-bench-") as temporary,
        PrefectHost(Path(temporary) / "host") as host,
        SyncPrefectClient(host.api_url) as client,
    ):
        site = ReprocessSite(Path(temporary), client)
        site.define("CT")
        site.define("MR", triggers=[{"Modality": "MR"}])
        for _ in range(_STUDIES):
            _enlarge(site, site.receive())
        environment = {**prefect_environment(site.data_dir, api_url=host.api_url), **site.environment}
        _backtest(site, environment)
        _dry_run(site, environment)
        _bulk(site, environment)


def _enlarge(site: ReprocessSite, study_id: str) -> None:
    """Give the record of a study what the header of a CT of a hundred slices has."""
    record = StudyStore(site.data_dir / "studies").record(study_id)
    shared = {f"0018{tag:04X}": TagColumn(values=(("a value",),), index=(0,) * _INSTANCES) for tag in range(80)}
    numbers = tuple((f"{number}",) for number in range(_INSTANCES))
    each = {f"0020{tag:04X}": TagColumn(values=numbers, index=tuple(range(_INSTANCES))) for tag in range(0x30, 0x36)}
    known = {
        tag: TagColumn(values=column.values, index=tuple(0 if column.values else -1 for _ in range(_INSTANCES)))
        for tag, column in record.fingerprint.columns.items()
    }
    fingerprint = Fingerprint(instance_count=_INSTANCES, columns={**shared, **each, **known})
    larger = record.model_copy(update={"instance_count": _INSTANCES, "fingerprint": fingerprint})
    (site.data_dir / "studies" / study_id / "study.json").write_text(larger.model_dump_json())


def _backtest(site: ReprocessSite, environment: dict[str, str]) -> None:
    text = io.StringIO()
    began = time.perf_counter()
    print_backtest(
        Console(file=text),
        load_site_settings(environment).settings,
        file=site.flows / "CT.yaml",
        since="",
        until="",
        limit=0,
    )
    _print("backtest of one definition", time.perf_counter() - began)
    print(f"    {text.getvalue().splitlines()[0]}")


def _dry_run(site: ReprocessSite, environment: dict[str, str]) -> None:
    request = _request(site, {"since": _SINCE, "dry_run": True})
    began = time.perf_counter()
    _engine(request, environment).wait()
    _print("dry run, two flows, with the start of its process", time.perf_counter() - began)
    state = site.client.read_flow_run(request).state
    print(f"    {state.message if state else ''}")


def _bulk(site: ReprocessSite, environment: dict[str, str]) -> None:
    request = _request(site, {"since": _SINCE})
    engine = _engine(request, environment)
    with PrefectRunHistory(site.client) as history:
        began = time.perf_counter()
        wait_until(lambda: history.waiting(request) >= MOST_WAITING, seconds=300, what="as many wait as may")
        print(f"  bulk: {MOST_WAITING} runs wait after {time.perf_counter() - began:.1f} s", flush=True)
        most, until = 0, time.monotonic() + _WATCHED_SECONDS
        while time.monotonic() < until:
            most = max(most, history.waiting(request))
            time.sleep(0.5)
        print(f"    most that waited in the {_WATCHED_SECONDS:.0f} s after that: {most}")
        engine.kill()
        engine.wait()
        began = time.perf_counter()
        withdrawn = history.withdraw(request)
        print(f"    stopped: {withdrawn} withdrawn in {time.perf_counter() - began:.1f} s")
    if (most, withdrawn, history.waiting(request)) != (MOST_WAITING, MOST_WAITING, 0):
        raise AssertionError("other runs waited, or were withdrawn, than should be")


def _request(site: ReprocessSite, parameters: dict[str, object]) -> str:
    deployment = site.client.read_deployment_by_name("reprocess/study")
    return str(site.client.create_flow_run_from_deployment(deployment.id, parameters=parameters).id)


def _engine(request: str, environment: dict[str, str]) -> subprocess.Popen[bytes]:
    """Start what a worker starts."""
    return subprocess.Popen(
        [sys.executable, "-m", "prefect.engine"],
        cwd=ROOT,
        env={**environment, "PREFECT__FLOW_RUN_ID": request},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )


def _print(what: str, seconds: float) -> None:
    mebibytes = (
        max(resource.getrusage(who).ru_maxrss for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)) / 1024
    )
    print(
        f"  {what}: {_STUDIES} studies in {seconds:.1f} s, {_STUDIES / seconds:.0f} a second; "
        f"fattest process so far {mebibytes:.0f} MiB",
        flush=True,
    )


if __name__ == "__main__":
    main()
