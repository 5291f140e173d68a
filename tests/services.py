"""Real services for tests: each in a process group of its own, and gone with the test run, however that ends."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import socket
import subprocess
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import httpx

from deployments.embedded_postgres import connection_url, socket_path
from deployments.services import PREFECT_DEFAULTS
from tests.claims import claim

ROOT = Path(__file__).resolve().parents[1]
_START_SECONDS = 120.0
_STOP_SECONDS = 15.0

# As a site has it: Prefect's clients, of which there are many, do not read the certificates of all authorities.
WITHOUT_AUTHORITIES = {"PREFECT_API_SSL_CERT_FILE": str(ROOT / "deployments" / "no_authority.pem")}
# Below those that Linux gives to whoever connects, or asks for any port.
_PORTS = range(12_000, 32_000)
# Those of long ago are let go: a process has many descriptors, and select(2) takes none above 1023.
_held_ports: deque[socket.socket] = deque(maxlen=256)


def unused_port() -> int:
    """Return a TCP port of the loopback interface that nobody listens on, and that no other test is given."""
    while True:
        port, holder = claim("port", random.sample(_PORTS, len(_PORTS)))
        _held_ports.append(holder)
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port


def wait_until(condition: Callable[[], bool], *, seconds: float, what: str, every_seconds: float = 0.02) -> None:
    """Return as soon as ``condition`` holds; raise ``TimeoutError``, which names ``what``, if it never does."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError(f"{what}: not within {seconds:g} s")
        time.sleep(every_seconds)


@contextlib.contextmanager
def running(
    command: Sequence[str],
    *,
    log: Path,
    environment: Mapping[str, str],
    stop_signal: int = signal.SIGTERM,
    pass_fds: Sequence[int] = (),
) -> Iterator[subprocess.Popen[bytes]]:
    """Run a command in a process group of its own; end the whole group on the way out, by force where it lingers."""
    # A test run that is killed outright cannot clean up: the kernel does.
    guarded = ["setpriv", "--pdeathsig", signal.Signals(stop_signal).name.removeprefix("SIG"), "--", *command]
    with log.open("ab") as output:
        process = subprocess.Popen(
            guarded,
            cwd=ROOT,
            env=dict(environment),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            pass_fds=pass_fds,
        )
    try:
        yield process
    finally:
        _end_group(process, stop_signal)


def _end_group(process: subprocess.Popen[bytes], stop_signal: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, stop_signal)
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(timeout=_STOP_SECONDS)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


@contextlib.contextmanager
def postgres(folder: Path) -> Iterator[str]:
    """Run the embedded PostgreSQL with its data below ``folder``; give what Prefect takes as its database."""
    data = folder / "postgres"
    command = [sys.executable, "-m", "deployments.embedded_postgres", str(data)]
    log = folder / "postgres.log"
    # SIGINT is PostgreSQL's fast shutdown; SIGTERM would wait for its clients to leave.
    with running(command, log=log, environment=os.environ, stop_signal=signal.SIGINT) as process:
        _await_answer(process, lambda: _listens(socket_path(data)), log=log, what="PostgreSQL")
        yield connection_url(data)


@contextlib.contextmanager
def prefect_server(folder: Path) -> Iterator[str]:
    """Run a real Prefect server, on the embedded PostgreSQL, with all its files below ``folder``; give its API URL."""
    with postgres(folder) as database, prefect_server_on(database, folder=folder, port=unused_port()) as (url, _):
        yield url


@contextlib.contextmanager
def prefect_server_on(database: str, *, folder: Path, port: int) -> Iterator[tuple[str, subprocess.Popen[bytes]]]:
    """Run a real Prefect server on a database that is there; give its API URL and its process."""
    url = f"http://127.0.0.1:{port}/api"
    log = folder / "prefect-server.log"
    command = [sys.executable, "-m", "prefect", "server", "start", "--host", "127.0.0.1", "--port", str(port)]
    environment = prefect_environment(folder, api_url=url) | {"PREFECT_API_DATABASE_CONNECTION_URL": database}
    with running(command, log=log, environment=environment) as process:
        _await_answer(process, lambda: _healthy(url), log=log, what="the Prefect server")
        yield url, process


def empty_prefect_server(api_url: str, *, pools: bool) -> None:
    """Remove all runs, deployments and workers from a Prefect server, and, if ``pools``, all work pools."""
    kinds = {"flow_runs": "id", "deployments": "id", **({"work_pools": "name"} if pools else {})}
    with _client(api_url, timeout_seconds=30) as client:

        def found(path: str) -> list[dict[str, str]]:
            items: list[dict[str, str]] = client.post(f"{path}/filter", json={}).raise_for_status().json()
            return items

        for kind, key in kinds.items():
            while items := found(kind):
                for item in items:
                    client.delete(f"{kind}/{item[key]}").raise_for_status()
        for pool in found("work_pools"):
            workers = f"work_pools/{pool['name']}/workers"
            for worker in found(workers):
                client.delete(f"{workers}/{worker['name']}").raise_for_status()


def prefect_environment(folder: Path, *, api_url: str) -> dict[str, str]:
    """Return this environment, with the Prefect settings of whoever runs the tests replaced by those of a site."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("PREFECT_")}
    return {
        **kept,
        **PREFECT_DEFAULTS,
        "PREFECT_API_URL": api_url,
        "PREFECT_HOME": str(folder / "prefect"),
        **WITHOUT_AUTHORITIES,
    }


def _await_answer(process: subprocess.Popen[bytes], answers: Callable[[], bool], *, log: Path, what: str) -> None:
    wait_until(lambda: process.poll() is not None or answers(), seconds=_START_SECONDS, what=f"{what} starts")
    if process.poll() is not None:
        raise RuntimeError(f"{what} ended with status {process.returncode}:\n{log.read_text(errors='replace')[-2000:]}")


def _listens(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX) as connection:
        return connection.connect_ex(str(path)) == 0


def _healthy(url: str) -> bool:
    try:
        with _client(url, timeout_seconds=5) as client:
            return client.get("health").is_success
    except httpx.TransportError:
        return False


def _client(api_url: str, *, timeout_seconds: float) -> httpx.Client:
    # Reading the certificates of all authorities takes 40 ms of a processor, and nobody needs them here.
    return httpx.Client(base_url=api_url, timeout=timeout_seconds, verify=False)
