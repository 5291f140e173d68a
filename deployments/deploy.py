"""``dicomflow deploy``: the definitions of FLOW_DIRECTORY, brought to Prefect once."""

from __future__ import annotations

from collections.abc import Iterable

import typer

from deployments.apply import apply, make_pools, plan_changes
from deployments.lost_runs import watch_for_lost_runs
from deployments.plain_connection import on_the_server
from deployments.plan import desired_deployment, pools_for, reprocess_deployment
from deployments.server_api import Connection
from flows_engine.definition.catalogue import FlowCatalogue
from flows_engine.definition.schema import FlowDefinition
from flows_engine.handoff.installation import instance_id
from flows_engine.handoff.site_settings import SiteSettings


def deploy_definitions(settings: SiteSettings, *, dry_run: bool) -> int:
    """Bring Prefect into step with the definitions and print what changed; return the exit status.

    1 if a definition file has problems: those are printed, and the others are deployed all the same.
    Raises ``ServerUnreachableError``.
    """
    definitions, status = _definitions(settings, remember=not dry_run)
    instance = instance_id(settings.data_dir)
    # A step that was cut off is taken again: what it had done already is told all the same.
    changes: dict[str, None] = {}

    def bring(server: Connection) -> None:
        found = plan_changes(server, definitions, instance_id=instance)
        changes.update(dict.fromkeys(map(str, found)))
        if not dry_run:
            apply(server, found)
            watch_for_lost_runs(server)

    on_the_server(bring)
    _print(changes, otherwise=f"all {len(definitions)} deployments are as their definitions say")
    return status


def deploy_pools(settings: SiteSettings) -> int:
    """Make the work pools and queues that the definitions ask for, and no deployment; return the exit status.

    1 if a definition file has problems, which are printed. Raises ``ServerUnreachableError``.
    """
    definitions, status = _definitions(settings, remember=False)
    deployments = [desired_deployment(definition, parameter_schema={}) for definition in definitions]
    pools = pools_for([*deployments, reprocess_deployment(parameter_schema={})])
    changes: dict[str, None] = {}
    on_the_server(lambda server: changes.update(dict.fromkeys(map(str, make_pools(server, pools)))))
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


def _print(changes: Iterable[str], *, otherwise: str) -> None:
    for line in list(changes) or [otherwise]:
        typer.echo(line)
