"""How long a run takes that does next to nothing: ``python -m tests.benchmarks.engine``.

One study of one slice and one busybox model that does nothing; our worker, Prefect's process worker and ``docker run``
in turn, on one server and one engine. Prefect's worker is given its pool's own template and asks every half second,
twenty times as often as by default.
"""

from __future__ import annotations

import argparse
import os
import platform
import resource
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from statistics import median
from typing import Any, Final, Self
from uuid import UUID

import docker
import psutil
from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas.actions import WorkPoolCreate, WorkPoolUpdate
from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterId
from prefect.client.schemas.objects import FlowRun
from prefect.workers.process import ProcessWorker

from deployments.demo.run import Folders, demo_host
from deployments.pool_template import JOB_TEMPLATE
from deployments.up import Host
from flows_engine.definition.loading import load_definition
from flows_engine.definition.naming import FLOW_NAME, WORKER_TYPE
from tests import services
from tests.benchmarks.raw_sender import prepare, send
from tests.benchmarks.statistics_line import percentile_95, spread
from tests.factories import ct_slice, flow_yaml, model_keys, write_instances
from tests.services import wait_until

_FLOW: Final = "Nothing"
_OURS: Final = "dicomflow"
_STOCK: Final = "Prefect's process worker"
_BARE: Final = "docker run"
_SLOTS: Final = 2
_PATIENCE_SECONDS: Final = 600.0
_MODEL_SECONDS: Final = 4
_LABEL: Final = "dicomflow.run"
_MIB: Final = 2**20


@dataclass(frozen=True)
class Plan:
    """How often everything is done."""

    rounds: int
    queued: int


_WHOLE: Final = Plan(rounds=25, queued=100)
_QUICK: Final = Plan(rounds=3, queued=6)


class Containers:
    """When containers started and ended, by their label, as the engine tells it (Unix time)."""

    def __init__(self) -> None:
        self.started: dict[str, float] = {}
        self.ended: dict[str, float] = {}

    @contextmanager
    def watched(self) -> Iterator[None]:
        client = docker.from_env()
        events = client.events(decode=True, filters={"event": ["start", "die"], "label": _LABEL})

        def note() -> None:
            for event in events:
                times = self.started if event["Action"] == "start" else self.ended
                times[event["Actor"]["Attributes"][_LABEL]] = event["timeNano"] / 1e9

        threading.Thread(target=note, name="events", daemon=True).start()
        try:
            yield
        finally:
            events.close()
            client.close()

    def lasted(self, name: str) -> float:
        wait_until(lambda: name in self.ended, seconds=_PATIENCE_SECONDS, what="the engine tells of the container")
        return self.ended[name] - self.started[name]


class Worker:
    """A worker with two slots on a pool of its own, and a deployment of the flow in that pool."""

    def __init__(
        self,
        host: Host,
        client: SyncPrefectClient,
        *,
        pool: str,
        kind: str,
        template: dict[str, Any],
        definition: dict[str, Any],
    ) -> None:
        self._host = host
        self._client = client
        self._pool = pool
        client.create_work_pool(WorkPoolCreate(name=pool, type=kind, base_job_template=template))
        deployed = client.read_deployment_by_name(f"{FLOW_NAME}/{_FLOW}")
        self._deployment_id = client.create_deployment(
            deployed.flow_id,
            name=f"{_FLOW} on {pool}",
            entrypoint=deployed.entrypoint,
            parameters={"definition": definition},
            parameter_openapi_schema=deployed.parameter_openapi_schema,
            work_pool_name=pool,
            enforce_parameter_schema=False,
        )

    @contextmanager
    def started(self, log: Path) -> Iterator[None]:
        environment = {**os.environ, **self._host.plan.environment, "PREFECT_WORKER_QUERY_SECONDS": "0.5"}
        command = [sys.executable, "-m", "prefect", "worker", "start", "--pool", self._pool, "--limit", str(_SLOTS)]
        with services.running(command, log=log, environment=environment) as process:
            wait_until(lambda: "started!" in log.read_text(), seconds=_PATIENCE_SECONDS, what="a worker is up")
            time.sleep(5)  # until it has imported what it needs
            self._process = psutil.Process(process.pid)
            self._alone = len(self._processes())
            yield

    def make_run(self, study_id: str, **parameters: object) -> str:
        told = {"study_id": study_id, **parameters}
        return str(self._client.create_flow_run_from_deployment(self._deployment_id, parameters=told).id)

    def pause(self, *, paused: bool) -> None:
        self._client.update_work_pool(self._pool, WorkPoolUpdate(is_paused=paused))

    def rest(self) -> None:
        """Return when no process of a run is left."""
        wait_until(lambda: len(self._processes()) <= self._alone, seconds=_PATIENCE_SECONDS, what="the worker rests")

    def cpu_seconds(self) -> float:
        """Return the CPU time of the worker, of what it started, and of what that has left behind."""
        return sum(sum(process.cpu_times()[:4]) for process in self._processes())

    def memory_mib(self) -> float:
        """Return what the worker and all that it started take together; pages that they share count once."""
        return sum(process.memory_full_info().pss for process in self._processes()) / _MIB

    def _processes(self) -> list[psutil.Process]:
        return [self._process, *self._process.children(recursive=True)]


class Bench:
    """One server, one gateway that has received one study, and the two workers."""

    def __init__(self, folder: Path) -> None:
        self._folders = Folders.below(folder)
        self._stack = ExitStack()
        self.containers = Containers()

    def __enter__(self) -> Self:
        folders = self._folders
        (folders.flows / f"{_FLOW}.yaml").write_text(flow_yaml(models=[model_keys(command="true")]))
        definition = load_definition(folders.flows / f"{_FLOW}.yaml").definition
        with ExitStack() as stack:
            host = stack.enter_context(demo_host(folders, environ=os.environ))
            self._client = stack.enter_context(SyncPrefectClient(host.plan.api_url))
            stack.enter_context(self.containers.watched())
            study = prepare(write_instances([ct_slice()], folders.sent))
            send(study, port=host.settings.ae_port, called_ae_title=host.settings.ae_title)
            wait_until(self._client.read_flow_runs, seconds=_PATIENCE_SECONDS, what="the study is triggered")
            (first,) = self._client.read_flow_runs()
            self.study_id = str(first.parameters["study_id"])
            self.until_over([str(first.id)])
            stock = ProcessWorker.get_default_base_job_template()
            told = definition.model_dump(mode="json", exclude_none=True)
            self.ways = {
                _OURS: Worker(
                    host, self._client, pool="ours", kind=WORKER_TYPE, template=JOB_TEMPLATE, definition=told
                ),
                _STOCK: Worker(host, self._client, pool="stock", kind="process", template=stock, definition=told),
            }
            for number, worker in enumerate(self.ways.values()):
                stack.enter_context(worker.started(folders.data / f"bench-worker-{number}.log"))
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._stack.close()

    def until_over(self, run_ids: Sequence[str]) -> list[FlowRun]:
        """Return the runs once all are over. Raises ``AssertionError`` unless all have completed."""
        wanted = FlowRunFilter(id=FlowRunFilterId(any_=[UUID(run_id) for run_id in run_ids]))
        runs: list[FlowRun] = []

        def are_over() -> bool:
            runs[:] = self._client.read_flow_runs(flow_run_filter=wanted)
            return all(run.state is not None and run.state.is_final() for run in runs)

        wait_until(are_over, seconds=_PATIENCE_SECONDS, what="the runs are over", every_seconds=0.2)
        assert [run.state_name for run in runs] == ["Completed"] * len(run_ids)
        return runs

    def one(self, name: str) -> tuple[float, float, float]:
        """Execute one run on an idle worker; return the time to its container, its overhead, and its CPU time."""
        worker = self.ways[name]
        worker.rest()
        cpu_seconds = worker.cpu_seconds()
        began = time.time()
        run_id = worker.make_run(self.study_id)
        (run,) = self.until_over([run_id])
        worker.rest()
        whole = _moment(run.end_time) - began
        to_container = self.containers.started[run_id] - began
        return to_container, whole - self.containers.lasted(run_id), worker.cpu_seconds() - cpu_seconds

    def bare(self, number: int) -> tuple[float, float, float]:
        """Do the same with ``docker run``. Its CPU time is that of the command."""
        name = f"bare-{number}"
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        began = time.time()
        command = ["docker", "run", "--rm", "--network", "none", "--label", f"{_LABEL}={name}", "busybox", "true"]
        subprocess.run(command, check=True)
        whole = time.time() - began
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        lasted = self.containers.lasted(name)
        cpu_seconds = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
        return self.containers.started[name] - began, whole - lasted, cpu_seconds

    def queued(self, name: str, count: int) -> tuple[float, float]:
        """Execute ``count`` runs that wait; return how many a minute were executed, and the CPU time of each."""
        worker = self.ways[name]
        worker.pause(paused=True)
        run_ids = [worker.make_run(self.study_id) for _ in range(count)]
        worker.rest()
        cpu_seconds, began = worker.cpu_seconds(), time.time()
        worker.pause(paused=False)
        runs = self.until_over(run_ids)
        worker.rest()
        elapsed = max(_moment(run.end_time) for run in runs) - began
        return count / elapsed * 60, (worker.cpu_seconds() - cpu_seconds) / count

    def memory(self, name: str, *, sleeping: dict[str, Any]) -> tuple[float, float]:
        """Return what the idle worker takes, and how much more while one run waits for its model, in MiB."""
        worker = self.ways[name]
        worker.rest()
        idle = worker.memory_mib()
        run_id = worker.make_run(self.study_id, definition=sleeping)
        wait_until(lambda: run_id in self.containers.started, seconds=_PATIENCE_SECONDS, what="its container runs")
        time.sleep(1)
        busy = worker.memory_mib()
        self.until_over([run_id])
        return idle, busy - idle


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="try it out: the numbers mean little")
    plan = _QUICK if parser.parse_args().quick else _WHOLE
    print(f"Python {platform.python_version()}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}", flush=True)
    with tempfile.TemporaryDirectory(prefix="dicomflow-bench-") as temporary, Bench(Path(temporary)) as bench:
        _one_at_a_time(bench, rounds=plan.rounds)
        _many_that_wait(bench, count=plan.queued)
        _memory(bench, Path(temporary))


def _one_at_a_time(bench: Bench, *, rounds: int) -> None:
    found: dict[str, list[tuple[float, float, float]]] = {name: [] for name in (*bench.ways, _BARE)}
    for number in range(-1, rounds):
        for name, row in found.items():
            measured = bench.bare(number) if name == _BARE else bench.one(name)
            if number >= 0:  # the first one warms caches
                row.append(measured)
    print(f"\none run at a time, each on an idle host, {rounds} of each kind in turn; ratios to {_STOCK}")
    for column, what in enumerate(("trigger -> container", "overhead of a run", "CPU of a run")):
        columns = {name: [row[column] for row in rows] for name, rows in found.items()}
        reference = columns[_STOCK]
        for name, values in columns.items():
            ratios = median(values) / median(reference), percentile_95(values) / percentile_95(reference)
            print(f"  {what:21} {name:24} {spread(values, 's')}   {ratios[0]:.2f}, p95 {ratios[1]:.2f}", flush=True)


def _many_that_wait(bench: Bench, *, count: int) -> None:
    print(f"\n{count} runs that wait, {_SLOTS} slots")
    found = {name: bench.queued(name, count) for name in bench.ways}
    for name, (a_minute, cpu_seconds) in found.items():
        ratios = a_minute / found[_STOCK][0], cpu_seconds / found[_STOCK][1]
        print(
            f"  {name:24} {a_minute:6.1f} a minute ({ratios[0]:.2f})   CPU {cpu_seconds:.2f} s a run ({ratios[1]:.2f})"
        )


def _memory(bench: Bench, folder: Path) -> None:
    sleeps = folder / "Sleeps.yaml"
    sleeps.write_text(flow_yaml(models=[model_keys(command=f"sleep {_MODEL_SECONDS}")]))
    sleeping = load_definition(sleeps).definition.model_dump(mode="json", exclude_none=True)
    print("\nmemory, shared pages counted once")
    for name in bench.ways:
        idle, more = bench.memory(name, sleeping=sleeping)
        print(f"  {name:24} idle {idle:4.0f} MiB, each run {more:4.0f} MiB more")


def _moment(time_of_run: datetime | None) -> float:
    assert time_of_run is not None
    return time_of_run.timestamp()


if __name__ == "__main__":
    main()
