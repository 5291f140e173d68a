"""Definitions to deployments, beside ``prefect deploy``: ``python -m tests.benchmarks.deploying``.

Both are timed as a person starts them, from the first import to the last answer. ``prefect deploy`` takes so long a
deployment that it gets a tenth of the definitions; what is compared is the time a deployment. After each step the
server holds what the definitions say, or it fails.
"""

from __future__ import annotations

import os
import platform
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import yaml
from prefect.client.orchestration import SyncPrefectClient

from tests.factories import flow_keys
from tests.prefect_host import PrefectHost
from tests.services import ROOT, empty_prefect_server, prefect_environment

_DEFINITIONS = 200
_BY_PREFECT = 20


def main() -> None:
    """Measure and print."""
    print(f"Python {platform.python_version()}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}", flush=True)
    with tempfile.TemporaryDirectory(prefix="dicomflow-bench-") as temporary:
        folder = Path(temporary)
        with PrefectHost(folder / "host") as host:
            site = Site(folder / "site", api_url=host.api_url)
            site.define(_DEFINITIONS)
            nothing = site.deploy(f"{_DEFINITIONS} definitions, from nothing")
            site.deploy("again, nothing changed")
            site.define(1, version="2")
            site.deploy("again, one changed")
            site.define(_DEFINITIONS, version="3")
            site.deploy("again, all changed")

            empty_prefect_server(host.api_url, pools=False)
            site.only(_BY_PREFECT)
            file = site.folder / "prefect.yaml"
            site.run("deployments.cli", "deploy", "--write", str(file))
            command = ("prefect", "deploy", "--all", "--prefect-file", str(file))
            took = site.timed(f"prefect deploy --all, {_BY_PREFECT} definitions, from nothing", *command)
            ours, theirs = nothing / _DEFINITIONS, took / _BY_PREFECT
            print(f"  a deployment: ours {1000 * ours:.0f} ms, prefect deploy {1000 * theirs:.0f} ms", end="")
            print(f", ratio {theirs / ours:.1f}")


class Site:
    """A folder of definitions, and the commands that are started there."""

    def __init__(self, folder: Path, *, api_url: str) -> None:
        self.folder = folder
        self._api_url = api_url
        self._flows = folder / "flows"
        self._flows.mkdir(parents=True)
        (folder / "conf").mkdir()
        self._environment = {
            **prefect_environment(folder, api_url=api_url),
            "DATA_DIR": str(folder / "data"),
            "CONF_DIR": str(self._flows.parent / "conf"),
            "FLOW_DIRECTORY": str(self._flows),
            "PYTHONPATH": str(ROOT),
        }
        self._versions: dict[str, str] = {}

    def define(self, count: int, *, version: str = "1") -> None:
        """Write the first ``count`` definitions anew."""
        for number in range(count):
            name = f"flow {number:03}"
            (self._flows / f"{name}.yaml").write_text(yaml.safe_dump(flow_keys(name=name, version=version)))
            self._versions[name] = version

    def only(self, count: int) -> None:
        """Leave the first ``count`` definitions, and remove the others."""
        for path in sorted(self._flows.iterdir())[count:]:
            path.unlink()
            del self._versions[path.stem]

    def deploy(self, what: str) -> float:
        return self.timed(f"dicomflow deploy: {what}", "deployments.cli", "deploy")

    def timed(self, what: str, *command: str) -> float:
        """Run a command, check what the server holds then, and return the seconds that the command took."""
        began = time.perf_counter()
        self.run(*command)
        took = time.perf_counter() - began
        self._check()
        print(f"  {what:66} {took:6.1f} s", flush=True)
        return took

    def run(self, *command: str) -> None:
        python = [sys.executable, "-m", *command]
        done = subprocess.run(
            python, env=self._environment, cwd=self.folder, capture_output=True, text=True, check=False
        )
        if done.returncode != 0:
            raise AssertionError(done.stdout + done.stderr)

    def _check(self) -> None:
        with SyncPrefectClient(self._api_url) as client:
            found = {}
            while page := client.read_deployments(offset=len(found), limit=100):
                found |= {deployment.name: deployment.version for deployment in page}
        del found["study"]  # which processes again
        if found != self._versions:
            raise AssertionError(f"definitions: {len(self._versions)}, deployments that are as they say: not all")


if __name__ == "__main__":
    main()
