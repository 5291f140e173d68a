"""A hospital's site for tests: a running host, its folder of flows, and somebody who sends studies."""

from __future__ import annotations

import io
import os
import re
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import docker
import yaml
from rich.console import Console

from deployments.demo import dcmtk
from deployments.study_reports import print_studies
from flows_engine.handoff.site_settings import load_site_settings
from tests.acceptance.prefect_api import FINAL, PrefectApi, eventually
from tests.factories import CANARY_SERIES_DESCRIPTION, ct_series, flow_keys, model_keys, write_instances
from tests.services import unused_port

_GATE, _WAITS = "go", "waits"


def site_environment(root: Path, **settings: str) -> dict[str, str]:
    """Return the environment of a site on free ports with all its folders below ``root``, which are made."""
    folders = {"DATA_DIR": root / "data", "FLOW_DIRECTORY": root / "flows", "STATIC_DIR": root / "static"}
    for folder in folders.values():
        folder.mkdir()
    kept = {name: value for name, value in os.environ.items() if not name.startswith("PREFECT_")}
    return {
        **kept,
        **{name: str(folder) for name, folder in folders.items()},
        "CONF_DIR": str(folders["STATIC_DIR"]),  # no *.yaml there: the configuration of this machine is left alone
        "AE_HOSTNAME": "127.0.0.1",
        "AE_PORT": str(unused_port()),
        "PREFECT_SERVER_API_PORT": str(unused_port()),
        "CPU_SLOTS": "2",
        "INCOMPLETE_SECONDS": "0",
        "SEND_RETRY_DELAYS_SECONDS": "0.5,1",
        **settings,
    }


class Site:
    """``environment`` as of ``site_environment``; somebody else starts and stops the services.

    A flow that is defined here fires on studies that are made here for it, and on no others.
    """

    def __init__(self, environment: Mapping[str, str], *, root: Path) -> None:
        self.environment = dict(environment)
        self.root = root
        self.data_dir = Path(environment["DATA_DIR"])
        self.flows = Path(environment["FLOW_DIRECTORY"])
        self.logs = self.data_dir / "logs"
        self.ae_port = int(environment["AE_PORT"])
        self.api_port = int(environment["PREFECT_SERVER_API_PORT"])
        self.ui_url = f"http://127.0.0.1:{self.api_port}"
        self.api = PrefectApi(f"{self.ui_url}/api")
        self.engine = docker.from_env(environment=self.environment)

    def write_flow(self, name: str, **keys: Any) -> Path:
        """Write the definition of the flow ``name``, as an editor does: under another name first."""
        keys = {"name": name, "triggers": [{"SeriesDescription": f" {name}$"}], **keys}
        path = self.flows / f"{name}.yaml"
        unfinished = path.with_suffix(".unfinished")
        unfinished.write_text(yaml.safe_dump(flow_keys(**keys), sort_keys=False))
        unfinished.replace(path)
        return path

    def define(self, name: str, *commands: str, **keys: Any) -> None:
        """Define a flow with one busybox model for each shell command, and wait until Prefect has it."""
        self.write_flow(name, models=shell_models(*commands), **keys)
        self.api.await_deployments(name)

    def study(self, *flows: str, count: int = 2, **values: Any) -> list[Path]:
        """Write a study on which ``flows`` fire, one series for each, ``count`` slices a series; return its files."""
        folder = self.root / "sent" / f"study-{len(list(self.root.glob('sent/*')))}"
        values = {"PatientID": f"CANARYID-7315-X {folder.name}", **values}
        files = []
        for name in flows:
            series = ct_series(count, SeriesDescription=f"{CANARY_SERIES_DESCRIPTION} {name}", **values)
            files += write_instances(series, folder / name)
        return files

    def send(self, *studies: Sequence[Path]) -> None:
        """Send studies in one association, with DCMTK's storescu; all is acknowledged when this returns."""
        files = [file for study in studies for file in study]
        dcmtk.store(files, port=self.ae_port, called_ae_title="STORESCP")

    def run_of(self, flow: str) -> str:
        """Return the id of the only run of ``flow``, once it exists."""
        (run,) = self.api.await_runs(flow)
        return str(run["id"])

    def send_and_await(self, flow: str, **values: Any) -> tuple[str, dict[str, Any]]:
        """Send a study for ``flow``; return the id of its run and the state in which that ended."""
        self.send(self.study(flow, **values))
        run_id = self.run_of(flow)
        return run_id, self.api.await_final(run_id)

    def containers(self, run_id: str, *, stopped_too: bool = True) -> list[Any]:
        return self.engine.containers.list(all=stopped_too, filters={"label": f"dicomflow.run={run_id}"})

    def await_gate(self, run_id: str, *, model: int = 1) -> None:
        """Return when a container of model number ``model`` of a run waits at its gate (see ``gated``)."""
        eventually(
            lambda: (self._waits(run_id, model), self.api.run(run_id)["state"]),
            lambda seen: seen[0] or seen[1]["type"] in FINAL,
            what=f"run {run_id} waits at the gate of model {model}",
        )
        assert self._waits(run_id, model), self.api.run(run_id)["state"]

    def open_gate(self, run_id: str, *, model: int = 1) -> None:
        (self._output(run_id, model) / _GATE).touch()

    def _waits(self, run_id: str, model: int) -> bool:
        """Tell whether what waits is a container that runs, and not what an attempt before it has left."""
        try:
            waiting = (self._output(run_id, model) / _WAITS).read_text().strip()
        except FileNotFoundError:
            return False
        return bool(waiting) and any(one.id.startswith(waiting) for one in self.containers(run_id, stopped_too=False))

    def _output(self, run_id: str, model: int) -> Path:
        return self.data_dir / "runs" / run_id / f"model-{model}" / "output"

    def command(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Run the ``dicomflow`` command of this site to its end."""
        return subprocess.run(
            [sys.executable, "-m", "deployments.cli", *arguments],
            env=self.environment,
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )

    def prefect(self, *arguments: str) -> None:
        """Run Prefect's own command, as its documentation tells it, to its end."""
        subprocess.run(
            [sys.executable, "-m", "prefect", "--no-prompt", *arguments],
            env={**self.environment, "PREFECT_API_URL": f"{self.ui_url}/api"},
            check=True,
            timeout=120,
        )

    def study_lines(self) -> list[str]:
        """Return what ``dicomflow studies`` prints of studies, newest first; no headings, nor what is on its way."""
        printed = io.StringIO()
        settings = load_site_settings(self.environment).settings
        print_studies(Console(file=printed), settings, limit=500)
        return [line for line in printed.getvalue().splitlines()[1:] if "receiving" not in line.split()]

    def await_decision(self, *, more_than: int) -> str:
        """Return the line of the newest study once there are ``more_than`` that many, and it is decided on."""
        lines = eventually(
            self.study_lines,
            lambda lines: len(lines) > more_than and "received" not in lines[0].split(),
            what="the newest study is decided on",
        )
        return lines[0]

    def service_logs(self) -> str:
        """Return the log files of all services."""
        return "\n".join(path.read_text(errors="replace") for path in sorted(self.logs.rglob("*")) if path.is_file())

    def processes(self, *words: str) -> list[int]:
        """Return the processes of this site whose command line has all ``words``."""
        return [pid for pid in processes_with(f"DATA_DIR={self.data_dir}") if _says(pid, words)]


def shell_models(*commands: str) -> list[dict[str, Any]]:
    """Return one busybox model for each shell command."""
    return [model_keys(docker_kwargs={"command": ["sh", "-c", command]}) for command in commands]


def gated(command: str = "cp -r /input/. /output/") -> str:
    """Return a shell command that first waits until the test opens its gate (see ``Site.open_gate``)."""
    wait = f"hostname > /output/{_WAITS}; until [ -e /output/{_GATE} ]; do sleep 0.1; done"
    return f"{wait}; rm /output/{_GATE} /output/{_WAITS}; {command}"


@contextmanager
def receiver(folder: Path, *, port: int | None = None) -> Iterator[dict[str, Any]]:
    """Run DCMTK's storescp, which writes to ``folder``; give it as a flow's destination."""
    folder.mkdir(parents=True, exist_ok=True)
    chosen = port or unused_port()
    with dcmtk.receiver(folder, port=chosen, ae_title="ARCHIVE"):
        yield node(chosen)


def node(port: int, *, ae_title: str = "ARCHIVE") -> dict[str, Any]:
    return {"host": "127.0.0.1", "port": port, "ae_title": ae_title}


def processes_with(*variables: str) -> list[int]:
    """Return the processes that were started with all of ``variables``, each as NAME=value."""
    wanted = [variable.encode() for variable in variables if variable]
    found = []
    for path in Path("/proc").glob("[0-9]*/environ"):
        try:
            environment = path.read_bytes().split(b"\0")
        except OSError:
            continue  # it ended, or is not ours
        if all(variable in environment for variable in wanted):
            found.append(int(path.parent.name))
    return found


def _says(pid: int, words: Sequence[str]) -> bool:
    try:
        line = Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
    except OSError:
        return False
    return all(re.search(rf"(^| |\.|/){re.escape(word)}( |$)", line) for word in words)
