"""A Prefect server and its database as ``dicomflow up`` runs them; either can be killed, and started again."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
from pathlib import Path
from types import TracebackType
from typing import Self

from deployments.embedded_postgres import socket_path
from deployments.services import HostFacts, host_plan
from deployments.when_ready import answers
from tests.services import running, unused_port, wait_until

DATABASE, SERVER = "postgres", "prefect-server"
_START_SECONDS = 180.0
_STOP_SIGNALS = {DATABASE: signal.SIGINT, SERVER: signal.SIGTERM}


class PrefectHost:
    """Runs while it is entered, on a port that stays the same. All its files are below ``folder``.

    ``database_url`` names a database of one's own, as a site does; then none is started here.
    """

    def __init__(self, folder: Path, *, database_url: str | None = None) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        kept = {name: value for name, value in os.environ.items() if not name.startswith("PREFECT_")}
        database = {"PREFECT_API_DATABASE_CONNECTION_URL": database_url} if database_url else {}
        plan = host_plan(
            HostFacts(
                data_dir=folder,
                host_name="host",
                cpu_slots=1,
                gpus=(),
                gpu_slots=1,
                gpu_kind=None,
                environ={**kept, **database, "PREFECT_SERVER_API_PORT": str(unused_port())},
                settings_environment={},
            )
        )
        self.api_url = plan.api_url
        self._environment = plan.environment
        self._commands = {service.name: service.command for service in plan.services if service.name in _STOP_SIGNALS}
        self._stops: dict[str, contextlib.ExitStack] = {}
        self._processes: dict[str, subprocess.Popen[bytes]] = {}

    def __enter__(self) -> Self:
        with contextlib.ExitStack() as undo:
            undo.callback(self._stop)
            for name in (DATABASE, SERVER):
                if name in self._commands:
                    self.start(name)
            undo.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop()

    def start(self, name: str) -> None:
        """Start a service, again and again as a supervisor does, and return when it serves."""
        address = f"unix:{socket_path(self.folder / 'postgres')}" if name == DATABASE else f"{self.api_url}/health"

        def serves() -> bool:
            if name not in self._processes or self._processes[name].poll() is not None:
                self._spawn(name)
            return answers(address, environ=self._environment)

        wait_until(serves, seconds=_START_SECONDS, what=f"{name} serves; see {self.log(name)}")

    def kill(self, name: str) -> None:
        """End a service as a power cut does."""
        self.process(name).kill()
        self.process(name).wait()

    def process(self, name: str) -> subprocess.Popen[bytes]:
        return self._processes[name]

    def log(self, name: str) -> Path:
        return self.folder / f"{name}.log"

    def _spawn(self, name: str) -> None:
        if name in self._stops:
            self._stops.pop(name).close()
        stop = self._stops[name] = contextlib.ExitStack()
        self._processes[name] = stop.enter_context(
            running(
                self._commands[name],
                log=self.log(name),
                environment=self._environment,
                stop_signal=_STOP_SIGNALS[name],
            )
        )

    def _stop(self) -> None:
        for name in (SERVER, DATABASE):
            if name in self._stops:
                self._stops.pop(name).close()
