"""What runs on one host, as values: which commands, in which order, with which environment. Pure."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from deployments.embedded_postgres import connection_url, socket_path
from flows_engine.definition import naming

PREFECT_PORT = 4200  # Prefect's own default
GATEWAY_SLOTS = 8
"""Requests that are carried out at once. One in bulk takes a slot for as long as its runs wait, and hardly any work."""


@dataclass(frozen=True, kw_only=True)
class Service:
    """One process that is kept running. Services start in order of ``rank`` and stop in the opposite order."""

    name: str
    command: tuple[str, ...]
    rank: int
    stop_signal: str = "TERM"
    stop_seconds: int = 20


@dataclass(frozen=True, kw_only=True)
class HostPlan:
    """All that runs on one host, the environment it shares, and where Prefect answers."""

    services: tuple[Service, ...]
    environment: Mapping[str, str]
    api_url: str

    @property
    def ui_url(self) -> str:
        """The address of Prefect's UI, which its server serves beside the API."""
        return self.api_url.removesuffix("/api")


@dataclass(frozen=True, kw_only=True)
class HostFacts:
    """What a plan for a host depends on. ``environ`` is what ``dicomflow up`` itself was started with."""

    data_dir: Path
    host_name: str
    cpu_slots: int
    gpus: tuple[str, ...]
    gpu_slots: int
    gpu_kind: str | None
    environ: Mapping[str, str]
    settings_environment: Mapping[str, str]


def host_plan(facts: HostFacts) -> HostPlan:
    """Return what has to run on a host.

    A site that names a server (``PREFECT_API_URL``) gets none of its own here; one that names a database
    (``PREFECT_API_DATABASE_CONNECTION_URL``) gets no PostgreSQL.
    """
    own_server = "PREFECT_API_URL" not in facts.environ
    own_database = own_server and "PREFECT_API_DATABASE_CONNECTION_URL" not in facts.environ
    port = int(facts.environ.get("PREFECT_SERVER_API_PORT", PREFECT_PORT))
    api_url = facts.environ.get("PREFECT_API_URL", f"http://127.0.0.1:{port}/api")
    postgres_data = facts.data_dir / "postgres"

    services = [
        _gateway(),
        _worker(facts, api_url, pool="cpu", slots=facts.cpu_slots),
        _worker(facts, api_url, pool=naming.GATEWAY_POOL, slots=GATEWAY_SLOTS),
    ]
    if facts.gpus:
        # Two workers lend the same GPUs: the leases of the steps keep their runs apart.
        pools = naming.gpu_pools(facts.gpu_kind)
        services += [_worker(facts, api_url, pool=pool, slots=facts.gpu_slots) for pool in pools]
    if own_server:
        services.append(_prefect_server(port, database=socket_path(postgres_data) if own_database else None))
    if own_database:
        services.append(_postgres(postgres_data))

    own_files = {"PREFECT_HOME": str(facts.data_dir / "prefect"), **where_results_lie(facts.data_dir, facts.environ)}
    environment = {**PREFECT_DEFAULTS, **own_files, **facts.environ}
    environment |= {**facts.settings_environment, "PREFECT_API_URL": api_url}
    if "PREFECT_SERVER_API_AUTH_STRING" in environment:
        environment.setdefault("PREFECT_API_AUTH_STRING", environment["PREFECT_SERVER_API_AUTH_STRING"])
    if own_server:
        environment.setdefault("PREFECT_API_SSL_CERT_FILE", str(NO_AUTHORITY))
    if own_database:
        environment["PREFECT_API_DATABASE_CONNECTION_URL"] = connection_url(postgres_data)
    # The automation for lost runs counts on it; the site's own would have it take healthy runs for dead.
    environment[_HEARTBEAT] = PREFECT_DEFAULTS[_HEARTBEAT]
    # The workers start flow runs as plain `python`: it has to be this one.
    environment["PATH"] = f"{Path(sys.executable).parent}:{environment.get('PATH', '')}"
    return HostPlan(services=tuple(services), environment=environment, api_url=api_url)


# Our server speaks plain HTTP on the loopback interface. Prefect's clients, of which a run has seven or more, read the
# certificates of all authorities nevertheless, 40 ms each, unless another file is named. This one holds a certificate
# whose validity ended before it began: by it, nobody is ever trusted.
NO_AUTHORITY: Final = Path(__file__).with_name("no_authority.pem")

_HEARTBEAT: Final = "PREFECT_FLOWS_HEARTBEAT_FREQUENCY"
PREFECT_DEFAULTS = {
    # Patient data is near: nothing is reported to anyone.
    "DO_NOT_TRACK": "1",
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    # A command that finds no server must say so, not start one of its own.
    "PREFECT_SERVER_ALLOW_EPHEMERAL_MODE": "false",
    # Workers hear of new runs at once. This is for what is said while they are not listening, and for runs that are due
    # later; Prefect's default is ten seconds.
    "PREFECT_WORKER_QUERY_SECONDS": "5",
    # A run says that it lives; where it does not any more, an automation makes it Crashed.
    # In seconds; Prefect allows no less.
    _HEARTBEAT: "30",
    # In memory, Prefect's default, a server that starts again ends every run of a flow that has a concurrency_limit.
    "PREFECT_SERVER_CONCURRENCY_LEASE_STORAGE": "prefect.server.concurrency.lease_storage.filesystem",
    # Under a long queue Prefect would give every waiting run another state, Late, which says nothing that we do not
    # know and takes its server longer than making the run has.
    "PREFECT_SERVER_SERVICES_LATE_RUNS_ENABLED": "false",
}


_RESULTS: Final = "PREFECT_RESULTS_LOCAL_STORAGE_PATH"
_RESULTS_NAMES: Final = (_RESULTS, "PREFECT_LOCAL_STORAGE_PATH")  # the second is Prefect's older name of the same


def where_results_lie(data_dir: Path, environ: Mapping[str, str]) -> dict[str, str]:
    """Return what tells Prefect to keep the results of tasks beside the outputs that they name.

    By them a retry knows which models have finished, also on another host that shares ``data_dir``. Nothing is returned
    where ``environ`` says where they lie.
    """
    if any(name in environ for name in _RESULTS_NAMES):
        return {}
    return {_RESULTS: str(data_dir / "prefect" / "storage")}


def _postgres(data: Path) -> Service:
    command = (sys.executable, "-m", "deployments.embedded_postgres", str(data))
    # SIGINT is PostgreSQL's fast shutdown; SIGTERM would wait for its clients to leave.
    return Service(name="postgres", command=command, rank=10, stop_signal="INT")


def _prefect_server(port: int, *, database: Path | None) -> Service:
    command: tuple[str, ...] = (
        sys.executable,
        "-m",
        "prefect",
        "server",
        "start",
        "--host",
        "127.0.0.1",
        "--port",
        str(port),
    )
    if database is not None:
        command = _when_ready(f"unix:{database}", command)
    return Service(name="prefect-server", command=command, rank=20)


def _gateway() -> Service:
    return Service(name="gateway", command=(sys.executable, "-m", "deployments.cli", "gateway"), rank=30)


def _worker(facts: HostFacts, api_url: str, *, pool: str, slots: int) -> Service:
    worker = (
        sys.executable,
        "-m",
        "deployments.cli",
        "worker",
        "--pool",
        pool,
        "--name",
        f"{facts.host_name}-{pool}",
        "--slots",
        str(slots),
    )
    # A worker that comes before its pool would make the pool, without its queues and their priorities.
    queue = f"{api_url}/work_pools/{pool}/queues/{naming.last_queue(pool)}"
    return Service(name=f"worker-{pool}", command=_when_ready(queue, worker), rank=40, stop_seconds=60)


def _when_ready(address: str, command: tuple[str, ...]) -> tuple[str, ...]:
    return (sys.executable, "-m", "deployments.when_ready", address, "--", *command)
