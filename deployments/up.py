"""One host, one command: everything runs, and it says where."""

from __future__ import annotations

import contextlib
import signal
import socket
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Self

import httpx
import typer

from deployments.api_credentials import api_headers
from deployments.embedded_postgres import socket_path
from deployments.errors import StartupError
from deployments.host_lock import host_lock
from deployments.services import HostFacts, HostPlan, host_plan
from deployments.supervision import Supervisor
from deployments.when_ready import answers
from flows_engine.definition.catalogue import FlowCatalogue
from flows_engine.definition.naming import FLOW_NAME, MANAGED_TAG, last_queue
from flows_engine.definition.schema import FlowDefinition
from flows_engine.errors import EngineMisconfiguredError, EngineUnavailableError
from flows_engine.handoff.site_settings import LoadedSettings, SiteSettings
from flows_engine.wiring import build_engine

_READY_SECONDS = 180.0
_LOG_LINES = 15


class Host:
    """All services of this host. Entering returns once they serve; leaving returns once they are gone."""

    def __init__(self, loaded: LoadedSettings, *, environ: Mapping[str, str]) -> None:
        self.settings = loaded.settings
        self.plan = _plan(loaded, environ)
        data_dir = self.settings.data_dir
        self.log_folder = self.settings.log_dir or data_dir / "logs"
        self._undo = contextlib.ExitStack()
        self._supervisor = Supervisor(self.plan, run_folder=data_dir / "run", log_folder=self.log_folder)

    def __enter__(self) -> Self:
        """Start all services and wait until they serve. Raises ``StartupError``, and then nothing runs."""
        self.settings.data_dir.mkdir(parents=True, exist_ok=True)
        with contextlib.ExitStack() as undo:
            undo.enter_context(host_lock(self.settings.data_dir))
            self._check_addresses()
            self._supervisor.start()
            undo.callback(self._supervisor.stop)
            self._wait_until_all_serve()
            self._undo = undo.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        # The second Ctrl-C of an impatient person must not leave half of it running.
        before = signal.signal(signal.SIGINT, signal.SIG_IGN)
        try:
            self._supervisor.stop()
            # A worker that stops ends its runs at once; their containers are the engine's children, not its.
            with contextlib.suppress(EngineUnavailableError, EngineMisconfiguredError):
                build_engine(self.settings).remove_all_containers()
        finally:
            self._undo.close()
            signal.signal(signal.SIGINT, before)

    def wait(self) -> int:
        """Return when the supervisor ends, which it does by itself only when something is very wrong."""
        return self._supervisor.wait()

    def flow_names(self) -> list[str]:
        """Return the flows that Prefect knows, in alphabetical order."""
        response = httpx.post(
            f"{self.plan.api_url}/deployments/filter",
            headers=api_headers(self.plan.environment),
            json={"deployments": {"tags": {"all_": [MANAGED_TAG]}}, "flows": {"name": {"any_": [FLOW_NAME]}}},
        )
        response.raise_for_status()
        return sorted(deployment["name"] for deployment in response.json())

    def flows_without_worker(self) -> dict[str, list[str]]:
        """Return the pools that definitions ask for and no worker of this host serves, each with its flows."""
        settings = self.settings
        catalogue = FlowCatalogue(
            settings.flow_directory,
            state_folder=settings.data_dir / "definitions",
            docker_kwargs_allowed=settings.docker_kwargs_allowed,
            remember=False,
        )
        catalogue.refresh()
        return without_worker(catalogue.snapshot().values(), self.plan)

    def _check_addresses(self) -> None:
        if self.settings.ae_port == 0:
            raise StartupError("AE_PORT: is 0, which is no port that a sender could be told; write 1 to 65535")
        _check_port(self.settings.ae_hostname, self.settings.ae_port, setting="AE_PORT")
        if any(service.name == "prefect-server" for service in self.plan.services):
            url = httpx.URL(self.plan.api_url)
            _check_port(url.host, url.port or 0, setting="PREFECT_SERVER_API_PORT")
        elif not self._answers(f"{self.plan.api_url}/health"):
            raise StartupError(
                f"nothing answers at {self.plan.api_url}, and no server is started here, because PREFECT_API_URL is "
                "set; start that server, or take PREFECT_API_URL out"
            )

    def _answers(self, address: str) -> bool:
        return answers(address, environ=self.plan.environment)

    def _wait_until_all_serve(self) -> None:
        api = self.plan.api_url
        if any(service.name == "postgres" for service in self.plan.services):
            database = socket_path(self.settings.data_dir / "postgres")
            self._await("postgres", lambda: self._answers(f"unix:{database}"))
        self._await("prefect-server", lambda: self._answers(f"{api}/health"))
        self._await("gateway", lambda: _listens(self.settings))
        self._await("gateway", lambda: self._answers(f"{api}/work_pools/cpu/queues/{last_queue('cpu')}"))
        self._await("worker-cpu", lambda: _has_online_worker(self.plan, pool="cpu"))

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
            for pool, flows in host.flows_without_worker().items():
                typer.echo(
                    f"warning      no worker of this host serves pool {pool}: {', '.join(flows)} will wait; "
                    f"set {_gpu_settings(pool)}, or run `dicomflow worker --pool {pool}` on a host that has such a GPU"
                )
            typer.echo(f"data, logs   {settings.data_dir}, {host.log_folder}")
            typer.echo("Ctrl-C stops everything.")
            status = host.wait()
            raise StartupError(f"the supervisor ended with status {status}; see {host.log_folder / 'supervisord.log'}")
    except KeyboardInterrupt:
        typer.echo("stopped.")


def _gpu_settings(pool: str) -> str:
    return "GPUS" if pool == "gpu" else f"GPUS and GPU_KIND={pool.removeprefix('gpu-')}"


def _plan(loaded: LoadedSettings, environ: Mapping[str, str]) -> HostPlan:
    settings = loaded.settings
    return host_plan(
        HostFacts(
            data_dir=settings.data_dir,
            host_name=socket.gethostname(),
            cpu_slots=settings.cpu_slots,
            gpus=settings.gpus,
            gpu_slots=settings.gpu_runs_at_once,
            gpu_kind=settings.gpu_kind,
            environ={**loaded.prefect_settings, **environ},
            settings_environment=settings.as_environment(),
        )
    )


def without_worker(definitions: Iterable[FlowDefinition], plan: HostPlan) -> dict[str, list[str]]:
    """Return the pools of ``definitions`` that no worker of ``plan`` serves, each with its flows. Pure."""
    served = {service.name.removeprefix("worker-") for service in plan.services if service.name.startswith("worker-")}
    missing: dict[str, list[str]] = {}
    for definition in definitions:
        if definition.work_pool not in served:
            missing.setdefault(definition.work_pool, []).append(definition.name)
    return missing


def _check_port(host: str, port: int, *, setting: str) -> None:
    try:
        # Like a server of either family does: what a name stands for is looked up, an IPv6 address has no dots.
        family, _, _, _, address = socket.getaddrinfo(host or "0.0.0.0", port, type=socket.SOCK_STREAM)[0]  # noqa: S104
        with socket.create_server(address[:2], family=family):
            return
    except OSError as error:
        raise StartupError(
            f"{setting}: {host}:{port} cannot be listened on ({error.strerror}); "
            f"stop what uses it, or set {setting} to another port"
        ) from None


def _listens(settings: SiteSettings) -> bool:
    try:
        with socket.create_connection((settings.ae_hostname or "127.0.0.1", settings.ae_port), timeout=1):
            return True
    except OSError:
        return False


def _has_online_worker(plan: HostPlan, *, pool: str) -> bool:
    response = httpx.post(
        f"{plan.api_url}/work_pools/{pool}/workers/filter",
        headers=api_headers(plan.environment),
        json={"workers": {"status": {"any_": ["ONLINE"]}}},
    )
    return response.is_success and bool(response.json())


def _last_lines(path: Path) -> str:
    try:
        return "\n".join(path.read_text(errors="replace").splitlines()[-_LOG_LINES:])
    except FileNotFoundError:
        return f"(no {path} yet)"
