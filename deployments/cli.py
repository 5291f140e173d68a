"""The ``dicomflow`` command: what Prefect cannot know of DICOM, of studies and of matching."""

from __future__ import annotations

import os
import socket
import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from deployments.errors import CommandError
from deployments.service_log import log_to_stderr
from deployments.services import GATEWAY_SLOTS, where_results_lie
from dicom_gateway.errors import GatewayError
from flows_engine.definition.errors import DefinitionError
from flows_engine.definition.naming import GATEWAY_POOL, gpu_pools
from flows_engine.errors import EngineError
from flows_engine.handoff.site_settings import LoadedSettings, SettingsError, SiteSettings, load_site_settings
from flows_engine.handoff.study_store import StudyNotFoundError

# Prefect is imported inside the commands that need it: it takes a second, and reads its settings on import.
app = typer.Typer(
    name="dicomflow",
    help="Run containerised models on DICOM studies. Queues, runs and retries are Prefect's: use its UI and CLI.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)
_LOCAL_API = "http://127.0.0.1:{port}/api"


@app.command()
def up() -> None:
    """Run everything on this host: database, Prefect server and UI, gateway, workers. Ctrl-C stops it all."""
    from deployments.up import run_until_stopped  # noqa: PLC0415

    run_until_stopped(_settings(), environ=os.environ)


@app.command()
def demo(
    flow: Annotated[
        Path, typer.Option(help="The flow to run; its destinations are replaced by one that the demonstration starts.")
    ] = Path("flow_definitions/two-containers.yaml"),
) -> None:
    """Show the whole way, with DCMTK as sender and receiver, and compare every byte that arrives."""
    from deployments.demo.run import demonstrate  # noqa: PLC0415

    demonstrate(Console(), flow=flow, environ=os.environ)


@app.command()
def gateway() -> None:
    """Receive studies and trigger their flows; keep Prefect's deployments in step with the definitions."""
    settings = _settings().settings
    log_to_stderr(settings.log_level)
    # Prefect's client would keep a call for a minute while its server is away. The gateway itself tries again, and
    # stops when it is told to.
    os.environ.setdefault("PREFECT_CLIENT_MAX_RETRIES", "0")
    _use_prefect()
    from deployments.gateway_service import serve  # noqa: PLC0415

    serve(settings)


@app.command()
def worker(
    pool: Annotated[
        str, typer.Option(help="The work pool: cpu, gpu, gpu-KIND, or, on the gateway's host, gateway.")
    ] = "cpu",
    name: Annotated[
        str, typer.Option(help="The worker's name in Prefect's UI; the host's name and the pool by default.")
    ] = "",
    slots: Annotated[
        int,
        typer.Option(min=0, help="Runs at once; by default CPU_SLOTS, GPU_SLOTS, or 8 in the pool gateway"),
    ] = 0,
) -> None:
    """Execute flow runs on this host. What an earlier worker of this host left behind goes on first."""
    settings = _settings().settings
    log_to_stderr(settings.log_level)
    _use_prefect()
    os.environ.update(where_results_lie(settings.data_dir.resolve(), os.environ))
    from deployments.worker_service import serve  # noqa: PLC0415

    serve(pool=pool, name=name or _worker_name(pool), slots=slots or _own_slots(settings, pool))


@app.command()
def deploy(
    file: Annotated[Path | None, typer.Argument(help="With --write: the file.", show_default="prefect.yaml")] = None,
    *,
    plan: Annotated[bool, typer.Option("--plan", help="Print what would change, and change nothing.")] = False,
    pools: Annotated[
        bool,
        typer.Option("--pools", help="Make only the work pools and their queues, which `prefect deploy` has to find."),
    ] = False,
    write: Annotated[
        bool, typer.Option("--write", help="Write FILE for `prefect deploy --all`, and change nothing on the server.")
    ] = False,
    check_only: Annotated[
        bool, typer.Option("--check", help="With --write: write nothing; exit status 1 if FILE is out of date.")
    ] = False,
) -> None:
    """Make Prefect's work pools, queues and deployments what the flow definitions say."""
    if plan + pools + write > 1:
        raise typer.BadParameter("of --plan, --pools and --write, one can be given")
    if not write and (file or check_only):
        raise typer.BadParameter("FILE and --check belong to --write")
    settings = _settings().settings
    if write:
        from deployments.prefect_yaml_file import write_prefect_yaml  # noqa: PLC0415

        raise typer.Exit(write_prefect_yaml(settings, file or Path("prefect.yaml"), check_only=check_only))
    _use_prefect()
    from deployments.deploy import deploy_definitions, deploy_pools  # noqa: PLC0415

    raise typer.Exit(deploy_pools(settings) if pools else deploy_definitions(settings, dry_run=plan))


@app.command()
def check(
    files: Annotated[
        list[Path] | None, typer.Argument(help="Definition files; all of FLOW_DIRECTORY if none is named.")
    ] = None,
) -> None:
    """Check flow definitions, and say of each what is wrong, where, and what to do."""
    from flows_engine.definition.catalogue import definition_files  # noqa: PLC0415
    from flows_engine.definition.loading import load_definition  # noqa: PLC0415

    settings = _settings().settings
    folder = settings.flow_directory
    try:
        chosen = files or definition_files(folder)
    except OSError as error:
        raise CommandError(f"FLOW_DIRECTORY: {folder} cannot be read: {error.strerror}") from None
    bad = 0
    named: dict[str, Path] = {}
    for path in chosen:
        try:
            loaded = load_definition(path, docker_kwargs_allowed=settings.docker_kwargs_allowed)
        except DefinitionError as error:
            bad += 1
            typer.echo(str(error), err=True)
            continue
        for warning in loaded.warnings:
            typer.echo(f"warning: {warning}", err=True)
        first = named.setdefault(loaded.definition.name, path)
        # Files that are named may be copies of each other; in the folder, a name is given once.
        if not files and first != path:
            bad += 1
            typer.echo(f"{path}: name: {loaded.definition.name!r} is also that of {first}; rename one", err=True)
            continue
        typer.echo(f"{path}: {loaded.definition.name} is well")
    raise typer.Exit(1 if bad else 0)


@app.command()
def studies(
    limit: Annotated[int, typer.Option(min=1, help="How many, newest first.")] = 20,
) -> None:
    """List what is being received, and what became of studies: triggered, no match, or held, with the reason."""
    from deployments.study_reports import print_studies  # noqa: PLC0415

    print_studies(Console(), _settings().settings, limit=limit)


@app.command()
def explain(
    study_id: str,
    *,
    values: Annotated[
        bool, typer.Option("--values", help="Also print the study's values of the tags in question: patient data.")
    ] = False,
) -> None:
    """Say which flows match a study as they are now, and why the others do not."""
    from deployments.study_reports import print_explanation  # noqa: PLC0415

    print_explanation(Console(), _settings().settings, study_id=study_id, with_values=values)


@app.command()
def reprocess(
    studies: Annotated[
        list[str] | None, typer.Argument(metavar="STUDY", help="Study ids or StudyInstanceUIDs.")
    ] = None,
    *,
    since: Annotated[
        str, typer.Option(help="Instead: all received from this moment on, like 12h or 30d (ago), or 2024-05-01.")
    ] = "",
    until: Annotated[str, typer.Option(help="All received before this moment; by default until now.")] = "",
    flow: Annotated[
        str, typer.Option(help="Run this flow, whether it matches or not; by default all that match now.")
    ] = "",
    only_matching: Annotated[
        bool, typer.Option("--only-matching", help="Run the flow of --flow only where it matches.")
    ] = False,
    priority: Annotated[
        int | None, typer.Option(min=0, max=5, help="By default the flow's own, and behind all others for a span.")
    ] = None,
    note: Annotated[str, typer.Option(help="Shown with each run, like 'model v2'; nothing about a patient.")] = "",
    receptions: Annotated[
        str, typer.Option(help="newest, or all, if a StudyInstanceUID was received several times.")
    ] = "newest",
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Make no run; tell which there would be.")] = False,
    no_wait: Annotated[bool, typer.Option("--no-wait", help="Ask, and do not wait until it is done.")] = False,
) -> None:
    """Have stored studies processed again: one or several, or all of a span of time."""
    settings = _settings().settings
    _use_prefect()
    from deployments.reprocess_command import Wish, reprocess_studies  # noqa: PLC0415

    wish = Wish(
        since=since,
        until=until,
        flow=flow,
        only_matching=only_matching,
        priority=priority,
        note=note,
        receptions=receptions,
        dry_run=dry_run,
    )
    raise typer.Exit(reprocess_studies(Console(), settings, studies=studies or [], wish=wish, wait=not no_wait))


@app.command()
def backtest(
    file: Annotated[Path, typer.Argument(metavar="FLOW.yaml", help="A definition, deployed or not.")],
    *,
    since: Annotated[str, typer.Option(help="Studies received from this moment on, like 12h or 30d (ago).")] = "",
    until: Annotated[str, typer.Option(help="Studies received before this moment; by default until now.")] = "",
    limit: Annotated[int, typer.Option(min=0, help="How many ids of matching studies to print.")] = 20,
) -> None:
    """Say which stored studies a definition would have matched, and why not the others. No run is made."""
    from deployments.backtest_command import print_backtest  # noqa: PLC0415

    print_backtest(Console(), _settings().settings, file=file, since=since, until=until, limit=limit)


@app.command()
def release(study_id: str) -> None:
    """Decide again on a study that is held, or matched nothing: as if it were complete, with the flows as they are."""
    from dicom_gateway.wiring import open_ledger  # noqa: PLC0415

    open_ledger(_settings().settings.data_dir).release(study_id)
    typer.echo(f"study {study_id} is released; the gateway matches it again")


@app.command()
def runs(
    *,
    limit: Annotated[int, typer.Option(min=1, help="How many, newest first.")] = 20,
    state: Annotated[str, typer.Option(help="Only those in this state: its name, or its code.")] = "",
    failed: Annotated[bool, typer.Option("--failed", help="Only those that failed or crashed.")] = False,
    active: Annotated[bool, typer.Option("--active", help="Only those that are not over.")] = False,
    study: Annotated[str, typer.Option(help="Only those of this study, by its id.")] = "",
    flow: Annotated[str, typer.Option(help="Only those of this flow, by its name.")] = "",
    as_json: Annotated[bool, typer.Option("--json", help="Print all there is to know of each, for scripts.")] = False,
) -> None:
    """List runs: how far each is, since when, why it failed, and why there is such a run."""
    from deployments import state_choice  # noqa: PLC0415

    if sum(map(bool, (state, failed, active))) > 1:
        raise CommandError("--state, --failed and --active ask for different runs; give one of them")
    choice = state_choice.state_choice(state) if state else None
    choice = state_choice.failed() if failed else state_choice.not_over() if active else choice
    _settings()
    _use_prefect()
    from deployments.run_report import print_runs  # noqa: PLC0415

    print_runs(Console(), limit=limit, states=choice, study_id=study, flow=flow, as_json=as_json)


@app.command()
def queue(
    *,
    as_json: Annotated[bool, typer.Option("--json", help="Print all there is to know, for scripts.")] = False,
) -> None:
    """Say what waits in every work pool, at which priority and since when, and who is there to take it."""
    settings = _settings().settings
    _use_prefect()
    from deployments.queue_report import print_queues  # noqa: PLC0415

    pools = ("cpu", *gpu_pools(settings.gpu_kind), GATEWAY_POOL)
    own_slots = {_worker_name(pool): _own_slots(settings, pool) for pool in pools}
    print_queues(Console(), own_slots=own_slots, as_json=as_json)


@app.command()
def priority(
    run: Annotated[str, typer.Argument(help="The run's id, or how its name begins.")],
    priority: Annotated[int, typer.Argument(min=0, max=5, help="0 to 5; 5 runs first.")],
) -> None:
    """Give a run that waits another priority. What has begun is never stopped for it."""
    _settings()
    _use_prefect()
    from deployments.priority import set_priority  # noqa: PLC0415

    set_priority(run, priority=priority)


def main() -> None:
    """Run the command. What a person can mend ends in one line and exit status 1, not in a traceback."""
    try:
        app()
    except (CommandError, DefinitionError, EngineError, GatewayError, SettingsError, StudyNotFoundError) as error:
        sys.exit(f"dicomflow: {error}")


def _settings() -> LoadedSettings:
    loaded = load_site_settings(os.environ)
    for warning in loaded.warnings:
        typer.echo(f"warning: {warning}", err=True)
    for name, value in loaded.prefect_settings.items():
        os.environ.setdefault(name, value)
    return loaded


def _worker_name(pool: str) -> str:
    return f"{socket.gethostname()}-{pool}"


def _own_slots(settings: SiteSettings, pool: str) -> int:
    return {"cpu": settings.cpu_slots, GATEWAY_POOL: GATEWAY_SLOTS}.get(pool, settings.gpu_runs_at_once)


def _use_prefect() -> None:
    """Point Prefect at the server that ``dicomflow up`` starts on this host, unless the site names another."""
    port = os.environ.get("PREFECT_SERVER_API_PORT", "4200")
    os.environ.setdefault("PREFECT_API_URL", _LOCAL_API.format(port=port))
    if "PREFECT_SERVER_API_AUTH_STRING" in os.environ:
        os.environ.setdefault("PREFECT_API_AUTH_STRING", os.environ["PREFECT_SERVER_API_AUTH_STRING"])
    os.environ.setdefault("PREFECT_SERVER_ALLOW_EPHEMERAL_MODE", "false")


if __name__ == "__main__":
    main()
