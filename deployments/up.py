"""One host, one command: everything runs, and it says where."""

from __future__ import annotations

import contextlib
import signal
import socket
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Self

import httpx
import typer

from deployments.embedded_postgres import socket_path
from deployments.services import HostFacts, HostPlan, host_plan
from deployments.supervision import Supervisor
from deployments.when_ready import answers
from flows_engine.definition.naming import FLOW_NAME, MANAGED_TAG
from flows_engine.errors import EngineUnavailableError
from flows_engine.handoff.site_settings import LoadedSettings, SiteSettings
from flows_engine.wiring import build_engine

_READY_SECONDS = 180.0
_LOG_LINES = 15


class StartupError(RuntimeError):
    """The services of this host did not come up. The message says which, and what its log says."""


class Host:
    """All services of this host. Entering returns once they serve; leaving returns once they are gone."""

    def __init__(self, loaded: LoadedSettings, *, environ: Mapping[str, str]) -> None:
        self.settings = loaded.settings
        self.plan = _plan(loaded, environ)
        data_dir = self.settings.data_dir
        self.log_folder = self.settings.log_dir or data_dir / "logs"
        self._supervisor = Supervisor(self.plan, run_folder=data_dir / "run", log_folder=self.log_folder)

    def __enter__(self) -> Self:
        """Start all services and wait until they serve. Raises ``StartupError``, and then nothing runs."""
        self._check_ports()
        self.settings.data_dir.mkdir(parents=True, exist_ok=True)
        self._supervisor.start()
        try:
            self._wait_until_all_serve()
        except BaseException:
            self._supervisor.stop()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        # The second Ctrl-C of an impatient person must not leave half of it running.
        before = signal.signal(signal.SIGINT, signal.SIG_IGN)
        try:
            self._supervisor.stop()
            # A worker that stops ends its runs at once; their containers are the engine's children, not its.
            with contextlib.suppress(EngineUnavailableError):
                build_engine(self.settings).remove_all_containers()
        finally:
            signal.signal(signal.SIGINT, before)

    def wait(self) -> int:
        """Return when the supervisor ends, which it does by itself only when something is very wrong."""
        return self._supervisor.wait()

    def flow_names(self) -> list[str]:
        """Return the flows that Prefect knows, in alphabetical order."""
        response = httpx.post(
            f"{self.plan.api_url}/deployments/filter",
            json={"deployments": {"tags": {"all_": [MANAGED_TAG]}}, "flows": {"name": {"any_": [FLOW_NAME]}}},
        )
        response.raise_for_status()
        return sorted(deployment["name"] for deployment in response.json())

    def _check_ports(self) -> None:
        _check_port(self.settings.ae_hostname, self.settings.ae_port, setting="AE_PORT")
        if any(service.name == "prefect-server" for service in self.plan.services):
            url = httpx.URL(self.plan.api_url)
            _check_port(url.host, url.port or 0, setting="PREFECT_SERVER_API_PORT")

    def _wait_until_all_serve(self) -> None:
        api = self.plan.api_url
        if any(service.name == "postgres" for service in self.plan.services):
            database = socket_path(self.settings.data_dir / "postgres")
            self._await("postgres", lambda: answers(f"unix:{database}"))
        self._await("prefect-server", lambda: answers(f"{api}/health"))
        self._await("gateway", lambda: _listens(self.settings))
        # The gateway writes the queue of the lowest priority last: the pool is whole when it is there.
        self._await("gateway", lambda: answers(f"{api}/work_pools/cpu/queues/priority-0"))
        self._await("worker-cpu", lambda: _has_online_worker(api, pool="cpu"))

    def _await(self, service: str, ready: Callable[[], bool]) -> None:
        deadline = time.monotonic() + _READY_SECONDS
        while not ready():
            if not self._supervisor.running:
                raise StartupError(f"the supervisor ended; see {self.log_folder / 'supervisord.log'}")
            if time.monotonic() > deadline:
                raise StartupError(
                    f"{service} does not serve after {_READY_SECONDS:.0f} s; its log ends with\n"
                    + _last_lines(self.log_folder / f"{service}.log")
                )
            time.sleep(0.1)


def run_until_stopped(loaded: LoadedSettings, *, environ: Mapping[str, str]) -> None:
    """Start the host, say where everything is, and stop it on Ctrl-C or SIGTERM."""
    # SIGINT too: a shell starts what it puts in the background with SIGINT ignored.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.default_int_handler)
    typer.echo("starting …")
    try:
        with Host(loaded, environ=environ) as host:
            settings = host.settings
            typer.echo(f"Prefect UI   {host.plan.ui_url}")
            typer.echo(
                f"receiver     {settings.ae_title} at {settings.ae_hostname or 'every address'}:{settings.ae_port}"
            )
            typer.echo(f"flows        {', '.join(host.flow_names()) or 'none yet'}  ({settings.flow_directory})")
            typer.echo(f"data, logs   {settings.data_dir}, {host.log_folder}")
            typer.echo("Ctrl-C stops everything.")
            status = host.wait()
            raise StartupError(f"the supervisor ended with status {status}; see {host.log_folder / 'supervisord.log'}")
    except KeyboardInterrupt:
        typer.echo("stopped.")


def _plan(loaded: LoadedSettings, environ: Mapping[str, str]) -> HostPlan:
    settings = loaded.settings
    return host_plan(
        HostFacts(
            data_dir=settings.data_dir,
            host_name=socket.gethostname(),
            cpu_slots=settings.cpu_slots,
            gpus=settings.gpus,
            environ={**loaded.prefect_settings, **environ},
            settings_environment=settings.as_environment(),
        )
    )


def _check_port(host: str, port: int, *, setting: str) -> None:
    try:
        with socket.create_server((host, port)):
            return
    except OSError as error:
        raise StartupError(
            f"{setting}: {host}:{port} cannot be listened on ({error.strerror}); "
            f"stop what uses it, or set {setting} to another port"
        ) from None


def _listens(settings: SiteSettings) -> bool:
    with socket.socket() as probe:
        probe.settimeout(1)
        return probe.connect_ex((settings.ae_hostname or "127.0.0.1", settings.ae_port)) == 0


def _has_online_worker(api_url: str, *, pool: str) -> bool:
    response = httpx.post(
        f"{api_url}/work_pools/{pool}/workers/filter", json={"workers": {"status": {"any_": ["ONLINE"]}}}
    )
    return response.is_success and bool(response.json())


def _last_lines(path: Path) -> str:
    try:
        return "\n".join(path.read_text(errors="replace").splitlines()[-_LOG_LINES:])
    except FileNotFoundError:
        return f"(no {path} yet)"
