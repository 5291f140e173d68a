"""The demonstration itself: start everything, send, wait, compare, tell, stop."""

from __future__ import annotations

import socket
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from rich.console import Console

from deployments.demo import dcmtk
from deployments.demo.studies import data_sets, write_studies
from deployments.demo.timeline import RunSummary, read_runs
from deployments.errors import CommandError
from deployments.up import Host
from flows_engine.definition.loading import load_definition
from flows_engine.definition.schema import Node
from flows_engine.handoff.site_settings import load_site_settings

_SLICES = 62
_PATIENTS = 2
_AE_TITLE = "DESTINATION"
_PATIENCE_SECONDS = 300.0


class DemoFailedError(CommandError):
    """The demonstration did not end with every instance delivered. The message says what is missing."""


@dataclass(frozen=True, kw_only=True)
class Folders:
    """Where the demonstration keeps its things; all of it is temporary."""

    data: Path
    flows: Path
    static: Path
    sent: Path
    delivered: Path

    @classmethod
    def below(cls, root: Path) -> Folders:
        """Make all folders below ``root``."""
        folders = cls(**{name: root / name for name in cls.__dataclass_fields__})
        for name in cls.__dataclass_fields__:
            (root / name).mkdir()
        return folders


def demonstrate(console: Console, *, flow: Path, environ: Mapping[str, str]) -> None:
    """Run the demonstration and print what happens. Raises ``DemoFailedError`` unless all that was sent has arrived."""
    for name in ("storescu", "storescp"):
        dcmtk.tool(name)
    with tempfile.TemporaryDirectory(prefix="dicomflow-demo-") as temporary:
        folders = Folders.below(Path(temporary))
        destination_port = free_port()
        write_flow(flow, folders.flows, destination=Node(host="127.0.0.1", port=destination_port, ae_title=_AE_TITLE))
        files = write_studies(folders.sent, slice_count=_SLICES)
        with (
            dcmtk.receiver(folders.delivered, port=destination_port, ae_title=_AE_TITLE),
            console.status("starting database, Prefect server, gateway and worker") as status,
            demo_host(folders, environ=environ) as host,
        ):
            settings = host.settings
            console.print(f"Prefect UI {host.plan.ui_url}, receiver {settings.ae_title} at port {settings.ae_port}")
            status.update("DCMTK's storescu is sending")
            began = datetime.now(UTC)
            dcmtk.store(files, port=settings.ae_port, called_ae_title=settings.ae_title)
            seconds = (datetime.now(UTC) - began).total_seconds()
            console.print(f"sent {len(files)} instances of {_PATIENTS} patients in one association, {seconds:.1f} s")
            for run in _await_runs(host, show=status.update):
                _print_run(console, run, began=began, ui_url=host.plan.ui_url)
            arrived, sent = _compare(folders)
            status.update("stopping everything")
    if arrived != sent:
        raise DemoFailedError(f"delivered {arrived} of {sent} instances")
    console.print(f"delivered {arrived} of {sent} instances, data sets equal byte for byte")


def demo_host(folders: Folders, *, environ: Mapping[str, str]) -> Host:
    """Return a host on free ports with its data in ``folders``, whatever the caller's own installation is set to."""
    settings = {
        "DATA_DIR": str(folders.data),
        "FLOW_DIRECTORY": str(folders.flows),
        "STATIC_DIR": str(folders.static),
        "AE_HOSTNAME": "127.0.0.1",
        "AE_PORT": str(free_port()),
        "CONF_DIR": str(folders.static),  # a folder without *.yaml: the site's own configuration is left alone
    }
    others = {name: value for name, value in environ.items() if not name.startswith("PREFECT_")}
    host_environ = {**others, **settings, "PREFECT_SERVER_API_PORT": str(free_port())}
    return Host(load_site_settings(host_environ), environ=host_environ)


def write_flow(flow: Path, folder: Path, *, destination: Node) -> None:
    """Write the definition ``flow`` to ``folder``, with ``destination`` as its only one."""
    definition = load_definition(flow).definition.model_copy(update={"destinations": (destination,)})
    # JSON is YAML.
    (folder / flow.name).write_text(definition.model_dump_json(indent=2, exclude_defaults=True))


def free_port() -> int:
    """Return a TCP port that nothing listens on at this moment."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port: int = server.getsockname()[1]
        return port


def _await_runs(host: Host, *, show: Callable[[str], None]) -> list[RunSummary]:
    deadline = time.monotonic() + _PATIENCE_SECONDS
    while time.monotonic() < deadline:
        runs = read_runs(host.plan.api_url, data_dir=host.settings.data_dir)
        show(" · ".join(f"{run.name}: {run.state}" for run in runs) or "waiting for the runs")
        if len(runs) >= _PATIENTS and all(run.finished for run in runs):
            return runs
        time.sleep(0.2)
    raise DemoFailedError(f"after {_PATIENCE_SECONDS:.0f} s the runs of {_PATIENTS} studies are not over")


def _print_run(console: Console, run: RunSummary, *, began: datetime, ui_url: str) -> None:
    console.print(f"\n{run.name}  {ui_url}/runs/flow-run/{run.run_id}", soft_wrap=True)
    for moment in run.moments:
        console.print(f"  {(moment.at - began).total_seconds():7.2f} s  {moment.what}", highlight=False)
    console.print(f"  {run.state}: {run.message}\n")


def _compare(folders: Folders) -> tuple[int, int]:
    sent, delivered = data_sets(folders.sent), data_sets(folders.delivered)
    return sum(delivered.get(uid) == content for uid, content in sent.items()), len(sent)
