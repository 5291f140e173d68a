"""``dicomflow deploy``: the definitions of FLOW_DIRECTORY, brought to Prefect once."""

from __future__ import annotations

from collections.abc import Iterable

import typer
from prefect.client.orchestration import get_client

from deployments.apply import bring_into_step, make_pools, plan_changes
from deployments.lost_runs import watch_for_lost_runs
from deployments.plan import Change, desired_deployment, pools_for, reprocess_deployment
from deployments.server_errors import told_in_one_line
from flows_engine.definition.catalogue import FlowCatalogue
from flows_engine.definition.schema import FlowDefinition
from flows_engine.handoff.site_settings import SiteSettings
from flows_engine.wiring import instance_id


def deploy_definitions(settings: SiteSettings, *, dry_run: bool) -> int:
    """Bring Prefect into step with the definitions and print what changed; return the exit status.

    1 if a definition file has problems: those are printed, and the others are deployed all the same.
    Raises ``ServerUnreachableError``.
    """
    definitions, status = _definitions(settings, remember=not dry_run)
    with get_client(sync_client=True) as client, told_in_one_line(client.api_url):
        bring = plan_changes if dry_run else bring_into_step
        changes = bring(client, definitions, instance_id=instance_id(settings.data_dir))
        if not dry_run:
            watch_for_lost_runs(client)
    _print(changes, otherwise=f"all {len(definitions)} deployments are as their definitions say")
    return status


def deploy_pools(settings: SiteSettings) -> int:
    """Make the work pools and queues that the definitions ask for, and no deployment; return the exit status.

    1 if a definition file has problems, which are printed. Raises ``ServerUnreachableError``.
    """
    definitions, status = _definitions(settings, remember=False)
    deployments = [desired_deployment(definition, parameter_schema={}) for definition in definitions]
    pools = pools_for([*deployments, reprocess_deployment(parameter_schema={})])
    with get_client(sync_client=True) as client, told_in_one_line(client.api_url):
        changes = make_pools(client, pools)
    _print(changes, otherwise=f"the work pools {', '.join(pools)} are there, with their queues")
    return status


def _definitions(settings: SiteSettings, *, remember: bool) -> tuple[list[FlowDefinition], int]:
    catalogue = FlowCatalogue(
        settings.flow_directory,
        state_folder=settings.data_dir / "definitions",
        docker_kwargs_allowed=settings.docker_kwargs_allowed,
        remember=remember,
    )
    found = catalogue.refresh()
    for problem in (*found.problems, *found.warnings):
        typer.echo(str(problem), err=True)
    return list(catalogue.snapshot().values()), 1 if found.problems else 0


def _print(changes: Iterable[Change], *, otherwise: str) -> None:
    for line in [str(change) for change in changes] or [otherwise]:
        typer.echo(line)
