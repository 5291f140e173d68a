"""``dicomflow deploy``: the definitions of FLOW_DIRECTORY, brought to Prefect once."""

from __future__ import annotations

import typer
from prefect.client.orchestration import get_client

from deployments.apply import bring_into_step, plan_changes
from deployments.server_errors import told_in_one_line
from flows_engine.definition.catalogue import FlowCatalogue
from flows_engine.handoff.site_settings import SiteSettings
from flows_engine.wiring import instance_id


def deploy_definitions(settings: SiteSettings, *, dry_run: bool) -> int:
    """Bring Prefect into step with the definitions and print what changed; return the exit status.

    1 if a definition file has problems: those are printed, and the others are deployed all the same.
    Raises ``ServerUnreachableError``.
    """
    catalogue = FlowCatalogue(
        settings.flow_directory, state_folder=settings.data_dir / "definitions", remember=not dry_run
    )
    found = catalogue.refresh()
    for problem in (*found.problems, *found.warnings):
        typer.echo(str(problem), err=True)
    definitions = catalogue.snapshot().values()
    with get_client(sync_client=True) as client, told_in_one_line(client.api_url):
        bring = plan_changes if dry_run else bring_into_step
        changes = bring(client, definitions, instance_id=instance_id(settings.data_dir))
    for change in changes:
        typer.echo(str(change))
    if not changes:
        typer.echo(f"all {len(definitions)} deployments are as their definitions say")
    return 1 if found.problems else 0
