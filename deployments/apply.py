"""Make a Prefect server hold what a plan says. May be run any number of times, by several at once."""

from __future__ import annotations

from collections.abc import Container, Iterable, Sequence
from dataclasses import replace

from deployments import server_api
from deployments.gone_definitions import mark_waiting_runs, unmark_runs
from deployments.parameter_schemas import process_study_schema, reprocess_schema
from deployments.plan import (
    Change,
    Deployment,
    PrefectContents,
    desired_deployment,
    plan,
    pool_changes,
    reprocess_deployment,
)
from deployments.server_api import Connection, Deployed
from deployments.server_errors import unless_it_is_gone
from flows_engine.definition import naming
from flows_engine.definition.schema import FlowDefinition


def bring_into_step(
    server: Connection, definitions: Iterable[FlowDefinition], *, instance_id: str | None = None
) -> tuple[Change, ...]:
    """Change on the server what has to change for ``definitions``, and return what that was.

    Deployments are marked as made by the installation ``instance_id``, and only such are ever removed; without one,
    none are. An installation is also given the deployment by which its studies are processed again.
    """
    changes = plan_changes(server, definitions, instance_id=instance_id)
    apply(server, changes)
    return changes


def plan_changes(
    server: Connection, definitions: Iterable[FlowDefinition], *, instance_id: str | None = None
) -> tuple[Change, ...]:
    """Return what would have to change on the server for ``definitions``; change nothing."""
    schema = process_study_schema()
    desired = [
        desired_deployment(definition, parameter_schema=schema, instance_id=instance_id) for definition in definitions
    ]
    if instance_id is not None:
        desired.append(reprocess_deployment(parameter_schema=reprocess_schema()))
    contents = read_contents(server, wanted={deployment.key for deployment in desired})
    return plan(desired, contents, instance_id=instance_id)


def make_pools(server: Connection, pools: Iterable[str]) -> tuple[Change, ...]:
    """Make what is missing of work pools and their queues, with their priorities, and return what that was."""
    changes = tuple(pool_changes(pools, server_api.queue_priorities(server)))
    apply(server, changes)
    return changes


def read_contents(server: Connection, *, wanted: Container[str] = ()) -> PrefectContents:
    """Return what the server holds for us. Runs are looked for only where the deployment is none of ``wanted``."""
    ours = list(server_api.deployments(server, flow_name=naming.FLOW_NAME))
    gone = [found for found in ours if found.deployment.name not in wanted]
    others = server_api.deployments(server, flow_name=naming.REPROCESS_FLOW_NAME)
    return PrefectContents(
        queue_priorities=server_api.queue_priorities(server),
        deployments={found.deployment.key: found.deployment for found in (*ours, *others)},
        with_unfinished_runs=_with_runs(server, gone, server_api.UNFINISHED),
        with_failed_runs=_with_runs(server, gone, server_api.FAILED),
    )


def _with_runs(server: Connection, deployments: Iterable[Deployed], states: Sequence[str]) -> frozenset[str]:
    return frozenset(
        found.deployment.name for found in deployments if server_api.has_runs(server, found.id, states=states)
    )


def apply(server: Connection, changes: Iterable[Change]) -> None:
    """Do what ``changes`` say, in their order."""
    # One after the other: Prefect's server works on one request at a time, and several at once take as long.
    flow_ids: dict[str, str] = {}
    for change in changes:
        match change.action:
            case "create pool":
                server_api.create_pool(server, change.name)
            case "create queue":
                pool, queue = change.name.rsplit("/", 1)
                server_api.create_queue(server, pool, queue, priority=naming.queues(pool)[queue])
            case "create" | "update" if change.deployment is not None:
                flow_name = change.deployment.flow_name
                if flow_name not in flow_ids:
                    flow_ids[flow_name] = server_api.create_flow(server, flow_name)
                _create_or_update(server, change.deployment, comes_back=change.comes_back, flow_id=flow_ids[flow_name])
            case "pause" if change.deployment is not None:
                _pause_deployment(server, change.deployment)
            case "delete":
                _delete_deployment(server, change.name)


def _create_or_update(server: Connection, deployment: Deployment, *, comes_back: bool, flow_id: str) -> None:
    if not comes_back:
        server_api.write_deployment(server, deployment, flow_id=flow_id)
        return
    # It counts as gone until its runs say otherwise, too: a step that is cut off here is taken again.
    still_gone = replace(deployment, paused=True, tags=(*deployment.tags, naming.GONE_TAG))
    deployment_id = server_api.write_deployment(server, still_gone, flow_id=flow_id)
    unmark_runs(server, deployment_id)
    server_api.update_deployment(server, deployment_id, paused=False, tags=list(deployment.tags))


def _pause_deployment(server: Connection, retired: Deployment) -> None:
    for found in server_api.deployment_ids(server, flow_name=naming.FLOW_NAME, name=retired.name):
        with unless_it_is_gone():
            # Runs made from now on take over its tags. It is paused last: a step that is cut off is taken again.
            server_api.update_deployment(server, found, tags=list(retired.tags), description=retired.description)
            mark_waiting_runs(server, found)
            server_api.update_deployment(server, found, paused=True)


def _delete_deployment(server: Connection, name: str) -> None:
    for found in server_api.deployment_ids(server, flow_name=naming.FLOW_NAME, name=name):
        # Prefect deletes scheduled runs with their deployment: what was triggered since the plan was made has to stay.
        if server_api.has_runs(server, found, states=server_api.UNFINISHED):
            continue
        with unless_it_is_gone():
            server_api.delete_deployment(server, found)
