"""From a decision to a run in Prefect, with every database and a long queue: ``python -m tests.benchmarks.triggering``.

Servers run as ``dicomflow up`` runs them, side by side, and are measured in turn, so that what disturbs the machine
disturbs all of them. The way begins when the decision on a study is in the ledger, and ends when the run is in Prefect
and the ledger says so. At the end of each part there is exactly one run for each study, or it fails. ``--quick`` tries
it out in a minute: the embedded database alone, and few of everything.
"""

from __future__ import annotations

import argparse
import os
import platform
import resource
import statistics
import tempfile
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from uuid import UUID, uuid4

from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas.actions import WorkPoolCreate
from prefect.workers.process import ProcessWorker

from deployments.parameter_schemas import process_study_schema
from flows_engine.definition.schema import FlowDefinition
from tests.benchmarks import databases
from tests.benchmarks.databases import DISTRIBUTION, EMBEDDED, SQLITE, DatabaseMissingError
from tests.benchmarks.statistics_line import percentile
from tests.benchmarks.trigger_path import Latencies, TriggerPath, time_each
from tests.benchmarks.waiting_runs import questions
from tests.fakes.entered_studies import request
from tests.prefect_host import SERVER, PrefectHost

_BARE, _STOCK = "a run of a bare deployment, by Prefect's client", "the same run as ours, checked as Prefect does"


@dataclass(frozen=True, kw_only=True)
class Plan:
    """How much is measured."""

    databases: Mapping[str, int]
    """Each with the studies of one round."""
    parallel: tuple[int, ...]
    rounds: int
    waiting: int
    asked: int


_WHOLE = Plan(
    # SQLite manages so few a second that as many as with the others would take all evening.
    databases={EMBEDDED: 60, DISTRIBUTION: 60, SQLITE: 10},
    parallel=(1, 4, 16),
    rounds=3,
    waiting=10_000,
    asked=20,
)
_QUICK = Plan(databases={EMBEDDED: 10}, parallel=(1, 4), rounds=1, waiting=200, asked=3)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="try it out: the numbers mean little")
    plan = _QUICK if parser.parse_args().quick else _WHOLE
    os.environ["PREFECT_CLIENT_MAX_RETRIES"] = "0"  # as the gateway sets it: it waits by itself
    print(f"Python {platform.python_version()}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}", flush=True)
    with tempfile.TemporaryDirectory(prefix="dicomflow-bench-") as temporary:
        _beside_databases(plan, Path(temporary))
        _beside_a_long_queue(plan, Path(temporary))


def _beside_databases(plan: Plan, folder: Path) -> None:
    print("\ntrigger path, and on the embedded database what Prefect alone takes for a run")
    with ExitStack() as stack:
        ways: dict[str, Callable[[int, int], Latencies]] = {}
        paths: dict[str, TriggerPath] = {}
        for name in plan.databases:
            place = folder / name.split()[0]
            place.mkdir()
            try:
                url = stack.enter_context(databases.database(name, place))
            except DatabaseMissingError as error:
                print(f"  {name}: cannot be had here: {error}")
                continue
            host = stack.enter_context(PrefectHost(place, database_url=url))
            path = paths[name] = stack.enter_context(TriggerPath(host.api_url, place, [_definition(4)]))
            ways[name] = lambda count, parallel, path=path: path.measure(count=count, parallel=parallel)
            if name == EMBEDDED:
                client = stack.enter_context(SyncPrefectClient(host.api_url))
                ways |= _prefect_alone(client)
        counts = {name: plan.databases.get(name, plan.databases[EMBEDDED]) for name in ways}
        for way in ways.values():
            way(5, 1)  # warms caches
        for parallel in plan.parallel:
            found = {name: Latencies() for name in ways}
            for _ in range(plan.rounds):
                for name, way in ways.items():
                    found[name].add(way(counts[name], parallel))
            _print_latencies(f"{parallel} at once", found)
        each = 5 + plan.rounds * len(plan.parallel) * plan.databases[EMBEDDED]
        for name, path in paths.items():
            runs = path.check(others=2 * each if name == EMBEDDED else 0)
            print(f"  {name}: {runs} studies, {runs} runs")


def _prefect_alone(client: SyncPrefectClient) -> dict[str, Callable[[int, int], Latencies]]:
    """Return ways to make a run that go round ours: the least that Prefect can do, and what it does by default."""
    bare = client.create_deployment(flow_id=client.create_flow_from_name("bare"), name="bare")
    template = ProcessWorker.get_default_base_job_template()
    client.create_work_pool(WorkPoolCreate(name="stock", type=ProcessWorker.type, base_job_template=template))
    stock = client.create_deployment(
        flow_id=client.create_flow_from_name("stock"),
        name="stock",
        work_pool_name="stock",
        parameter_openapi_schema=process_study_schema(),
        enforce_parameter_schema=True,
    )
    told = request(_definition(4), str(uuid4())).model_dump(mode="json", exclude_none=True)

    def way(deployment_id: UUID, parameters: dict[str, object]) -> Callable[[int, int], Latencies]:
        def create(_number: int) -> None:
            key = str(uuid4())
            client.create_flow_run_from_deployment(deployment_id, parameters=parameters, idempotency_key=key)

        return lambda count, parallel: time_each(create, count=count, parallel=parallel)

    return {_BARE: way(bare, {}), _STOCK: way(stock, told)}


def _beside_a_long_queue(plan: Plan, folder: Path) -> None:
    definitions = [_definition(priority) for priority in range(6)]
    with ExitStack() as stack:
        hosts, paths, asked = {}, {}, {}
        for name in ("empty", "full"):
            host = hosts[name] = stack.enter_context(PrefectHost(folder / name))
            paths[name] = stack.enter_context(TriggerPath(host.api_url, folder / name, definitions))
            paths[name].measure(count=12, parallel=2)
            asked[name] = stack.enter_context(questions(host.api_url, pool="cpu"))
        before = _peak_rss_mebibytes()
        paths["full"].pile_up(plan.waiting)
        seconds = paths["full"].work_off()
        runs = paths["full"].check()
        print(f"\n{plan.waiting} studies that had piled up in the ledger were triggered in {seconds:.0f} s")
        print(f"  {plan.waiting / seconds:.1f} a second; {runs} studies, {runs} runs")
        print(f"  peak memory of the outbox's process: before {before:.0f} MiB, after {_peak_rss_mebibytes():.0f} MiB")

        print(f"\na queue of {plan.waiting} runs of six priorities beside an empty one; seconds, and ratio of medians")
        ways: dict[str, Callable[[str], Latencies]] = {
            f"trigger path, {parallel} at once": (
                lambda name, parallel=parallel: paths[name].measure(count=plan.asked, parallel=parallel)
            )
            for parallel in (1, 4)
        }
        for question in asked["full"]:
            ways[question] = lambda name, question=question: time_each(
                lambda _: _done(asked[name][question]()), count=plan.asked, parallel=1
            )
        for title, way in ways.items():
            found = {name: Latencies() for name in hosts}
            for _ in range(plan.rounds):
                for name in hosts:
                    found[name].add(way(name))
            medians = {name: statistics.median(latencies.seconds) for name, latencies in found.items()}
            row = "   ".join(
                f"{name} median {1000 * medians[name]:7.0f} p95 {1000 * percentile(found[name].seconds, 95):7.0f} ms"
                for name in found
            )
            print(f"  {title:36} {row}   ratio {medians['full'] / medians['empty']:5.2f}", flush=True)
        memory = {name: _rss_mebibytes(host) for name, host in hosts.items()}
        print(
            f"  memory of the server (RSS): empty {memory['empty']:.0f} MiB, full {memory['full']:.0f} MiB, "
            f"ratio {memory['full'] / memory['empty']:.2f}"
        )
        for name, path in paths.items():
            runs = path.check()
            print(f"  {name}: {runs} studies, {runs} runs")


def _done(_answer: object) -> None:
    """Take an answer as given: what counts is how long it took."""


def _definition(priority: int) -> FlowDefinition:
    """Return a definition of ordinary size."""
    model = {
        "docker_kwargs": {
            "image": "registry.local/autoseg:1.2",
            "command": "python -m autoseg --input /input --output /output",
            "environment": {"MODEL": "head-and-neck", "THREADS": 4},
        },
        "static_mounts": ["weights:/model"],
        "timeout": 1800,
    }
    return FlowDefinition.model_validate(
        {
            "name": f"AutoSegmentation{priority}",
            "version": "1.02",
            "priority": priority,
            "triggers": [
                {"Modality": "CT", "SeriesDescription": "Head|Neck|Brain"},
                {"SOPClassUID": "1.2.840.10008.5.1.4.1.1.2", "StudyDescription": ["AutoSeg", "~Phantom"]},
            ],
            "models": [model, model],
            "destinations": [{"host": "pacs.local", "port": 104, "ae_title": "ARCHIVE"}],
        }
    )


def _print_latencies(title: str, found: Mapping[str, Latencies]) -> None:
    print(f"  {title}", flush=True)
    reference = statistics.median(found[EMBEDDED].seconds)
    for name, latencies in found.items():
        seconds = latencies.seconds
        median = statistics.median(seconds)
        print(
            f"    {name:50} {latencies.per_second:6.1f} runs/s   median {1000 * median:6.0f} ms   "
            f"p95 {1000 * percentile(seconds, 95):6.0f} ms   p99 {1000 * percentile(seconds, 99):6.0f} ms   "
            f"ratio {median / reference:5.2f}   n={len(seconds)}",
            flush=True,
        )


def _rss_mebibytes(host: PrefectHost) -> float:
    status = Path(f"/proc/{host.process(SERVER).pid}/status").read_text()
    (line,) = (line for line in status.splitlines() if line.startswith("VmRSS"))
    return int(line.split()[1]) / 1024


def _peak_rss_mebibytes() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


if __name__ == "__main__":
    main()
