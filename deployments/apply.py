"""Make a Prefect server hold what a plan says. May be run any number of times, by several at once."""

from __future__ import annotations

from collections.abc import Container, Iterable, Iterator, Sequence
from dataclasses import replace
from itertools import count
from typing import Any
from uuid import UUID

from prefect import Flow
from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas.actions import DeploymentUpdate, WorkPoolCreate
from prefect.client.schemas.filters import (
    DeploymentFilter,
    DeploymentFilterName,
    DeploymentFilterTags,
    FlowFilter,
    FlowFilterName,
    FlowRunFilter,
    FlowRunFilterDeploymentId,
    FlowRunFilterState,
    FlowRunFilterStateType,
)
from prefect.client.schemas.objects import TERMINAL_STATES, ConcurrencyLimitStrategy, ConcurrencyOptions, StateType
from prefect.client.schemas.responses import DeploymentResponse
from prefect.client.schemas.sorting import DeploymentSort
from prefect.exceptions import ObjectAlreadyExists
from prefect.utilities.callables import parameter_schema

from deployments.gone_definitions import mark_waiting_runs, unmark_runs
from deployments.plan import (
    Change,
    Deployment,
    PrefectContents,
    desired_deployment,
    plan,
    pool_changes,
    reprocess_deployment,
)
from deployments.pool_template import JOB_TEMPLATE
from deployments.server_errors import unless_it_is_gone
from dicom_gateway.reprocess import reprocess
from flows_engine.definition import naming
from flows_engine.definition.schema import FlowDefinition
from flows_engine.flows.process_study import process_study

_PAGE = 200
_UNFINISHED = tuple(kind for kind in StateType if kind not in TERMINAL_STATES)
_FAILED = (StateType.FAILED, StateType.CRASHED)


def process_study_schema() -> dict[str, Any]:
    """Return the schema of the flow's parameters, from which the UI builds its form."""
    return _schema(process_study)


def reprocess_schema() -> dict[str, Any]:
    """Return the schema of what can be asked for when studies are processed again."""
    return _schema(reprocess)


def _schema(flow: Flow[..., Any]) -> dict[str, Any]:
    schema = parameter_schema(flow).model_dump_for_openapi()
    # `prefect deploy` leaves them out where there are none.
    return {key: value for key, value in schema.items() if value or key != "definitions"}


def bring_into_step(
    client: SyncPrefectClient, definitions: Iterable[FlowDefinition], *, instance_id: str | None = None
) -> tuple[Change, ...]:
    """Change on the server what has to change for ``definitions``, and return what that was.

    Deployments are marked as made by the installation ``instance_id``, and only such are ever removed; without one,
    none are. An installation is also given the deployment by which its studies are processed again.
    """
    changes = plan_changes(client, definitions, instance_id=instance_id)
    apply(client, changes)
    return changes


def plan_changes(
    client: SyncPrefectClient, definitions: Iterable[FlowDefinition], *, instance_id: str | None = None
) -> tuple[Change, ...]:
    """Return what would have to change on the server for ``definitions``; change nothing."""
    schema = process_study_schema()
    desired = [
        desired_deployment(definition, parameter_schema=schema, instance_id=instance_id) for definition in definitions
    ]
    if instance_id is not None:
        desired.append(reprocess_deployment(parameter_schema=reprocess_schema()))
    contents = read_contents(client, wanted={deployment.key for deployment in desired})
    return plan(desired, contents, instance_id=instance_id)


def make_pools(client: SyncPrefectClient, pools: Iterable[str]) -> tuple[Change, ...]:
    """Make what is missing of work pools and their queues, with their priorities, and return what that was."""
    changes = tuple(pool_changes(pools, _queue_priorities(client)))
    apply(client, changes)
    return changes


def read_contents(client: SyncPrefectClient, *, wanted: Container[str] = ()) -> PrefectContents:
    """Return what the server holds for us. Runs are looked for only where the deployment is none of ``wanted``."""
    responses = list(_deployments(client, naming.FLOW_NAME))
    gone = [response for response in responses if response.name not in wanted]
    others = _deployments(client, naming.REPROCESS_FLOW_NAME)
    deployments = [
        *(_as_deployment(response, naming.FLOW_NAME) for response in responses),
        *(_as_deployment(response, naming.REPROCESS_FLOW_NAME) for response in others),
    ]
    return PrefectContents(
        queue_priorities=_queue_priorities(client),
        deployments={deployment.key: deployment for deployment in deployments},
        with_unfinished_runs=_with_runs(client, gone, _UNFINISHED),
        with_failed_runs=_with_runs(client, gone, _FAILED),
    )


def _queue_priorities(client: SyncPrefectClient) -> dict[str, dict[str, int]]:
    return {
        pool.name: {queue.name: queue.priority or 0 for queue in client.read_work_queues(work_pool_name=pool.name)}
        for pool in client.read_work_pools()
        if pool.name in {"cpu", naming.GATEWAY_POOL} or pool.name.split("-")[0] == "gpu"
    }


def _deployments(client: SyncPrefectClient, flow_name: str) -> Iterator[DeploymentResponse]:
    ours = DeploymentFilter(tags=DeploymentFilterTags(all_=[naming.MANAGED_TAG]))
    of_flow = FlowFilter(name=FlowFilterName(any_=[flow_name]))
    for page in count():
        found = client.read_deployments(
            flow_filter=of_flow,
            deployment_filter=ours,
            sort=DeploymentSort.NAME_ASC,
            limit=_PAGE,
            offset=page * _PAGE,
        )
        yield from found
        if len(found) < _PAGE:
            return


def _with_runs(
    client: SyncPrefectClient, deployments: Iterable[DeploymentResponse], states: Sequence[StateType]
) -> frozenset[str]:
    return frozenset(found.name for found in deployments if _has_runs(client, found.id, states))


def _has_runs(client: SyncPrefectClient, deployment_id: UUID, states: Sequence[StateType]) -> bool:
    runs = FlowRunFilter(
        deployment_id=FlowRunFilterDeploymentId(any_=[deployment_id]),
        state=FlowRunFilterState(type=FlowRunFilterStateType(any_=list(states))),
    )
    return bool(client.read_flow_runs(flow_run_filter=runs, limit=1))


def _as_deployment(response: DeploymentResponse, flow_name: str) -> Deployment:
    limit, options = response.global_concurrency_limit, response.concurrency_options
    return Deployment(
        name=response.name,
        version=response.version or "",
        description=response.description or "",
        tags=tuple(response.tags),
        work_pool=response.work_pool_name or "",
        work_queue=response.work_queue_name or "",
        parameters=response.parameters,
        parameter_schema=response.parameter_openapi_schema or {},
        entrypoint=response.entrypoint or "",
        paused=response.paused,
        concurrency_limit=None if limit is None else limit.limit,
        collision_strategy=None if options is None else options.collision_strategy.value,
        flow_name=flow_name,
    )


def apply(client: SyncPrefectClient, changes: Iterable[Change]) -> None:
    """Do what ``changes`` say, in their order."""
    # One after the other: Prefect's server works on one request at a time, and several at once take as long.
    flow_ids: dict[str, UUID] = {}
    for change in changes:
        match change.action:
            case "create pool":
                _create_pool(client, change.name)
            case "create queue":
                _create_queue(client, *change.name.rsplit("/", 1))
            case "create" | "update" if change.deployment is not None:
                flow_name = change.deployment.flow_name
                if flow_name not in flow_ids:
                    flow_ids[flow_name] = client.create_flow_from_name(flow_name)
                _create_or_update(client, change.deployment, comes_back=change.comes_back, flow_id=flow_ids[flow_name])
            case "pause" if change.deployment is not None:
                _pause_deployment(client, change.deployment)
            case "delete":
                _delete_deployment(client, change.name)


def _create_pool(client: SyncPrefectClient, name: str) -> None:
    try:
        client.create_work_pool(WorkPoolCreate(name=name, type=naming.WORKER_TYPE, base_job_template=JOB_TEMPLATE))
    except ObjectAlreadyExists:
        return  # someone else was a moment earlier


def _create_queue(client: SyncPrefectClient, pool: str, queue: str) -> None:
    try:
        client.create_work_queue(queue, work_pool_name=pool, priority=naming.queues(pool)[queue])
    except ObjectAlreadyExists:
        return


def _create_or_update(client: SyncPrefectClient, deployment: Deployment, *, comes_back: bool, flow_id: UUID) -> None:
    if not comes_back:
        _write_deployment(client, deployment, flow_id=flow_id)
        return
    # It counts as gone until its runs say otherwise, too: a step that is cut off here is taken again.
    still_gone = replace(deployment, paused=True, tags=(*deployment.tags, naming.GONE_TAG))
    deployment_id = _write_deployment(client, still_gone, flow_id=flow_id)
    unmark_runs(client, deployment_id)
    client.update_deployment(deployment_id, DeploymentUpdate(paused=False, tags=list(deployment.tags)))


def _write_deployment(client: SyncPrefectClient, deployment: Deployment, *, flow_id: UUID) -> UUID:
    options = None
    if deployment.collision_strategy is not None:
        options = ConcurrencyOptions(collision_strategy=ConcurrencyLimitStrategy(deployment.collision_strategy))
    return client.create_deployment(  # Prefect updates a deployment that is there
        flow_id=flow_id,
        name=deployment.name,
        version=deployment.version,
        description=deployment.description,
        tags=list(deployment.tags),
        work_pool_name=deployment.work_pool,
        work_queue_name=deployment.work_queue,
        parameters=dict(deployment.parameters),
        parameter_openapi_schema=dict(deployment.parameter_schema),
        enforce_parameter_schema=True,
        entrypoint=deployment.entrypoint,
        pull_steps=[],
        paused=deployment.paused,
        concurrency_limit=deployment.concurrency_limit,
        concurrency_options=options,
    )


def _pause_deployment(client: SyncPrefectClient, retired: Deployment) -> None:
    for found in _named(client, retired.name):
        with unless_it_is_gone():
            # Runs made from now on take over its tags. It is paused last: a step that is cut off is taken again.
            telling = DeploymentUpdate(tags=list(retired.tags), description=retired.description)
            client.update_deployment(found.id, telling)
            mark_waiting_runs(client, found.id)
            client.update_deployment(found.id, DeploymentUpdate(paused=True))


def _delete_deployment(client: SyncPrefectClient, name: str) -> None:
    for found in _named(client, name):
        # Prefect deletes scheduled runs with their deployment: what was triggered since the plan was made has to stay.
        if _has_runs(client, found.id, _UNFINISHED):
            continue
        with unless_it_is_gone():
            client.delete_deployment(found.id)


def _named(client: SyncPrefectClient, name: str) -> list[DeploymentResponse]:
    # Not by Prefect's lookup by name: it puts the name into a URL without quoting it.
    return client.read_deployments(
        flow_filter=FlowFilter(name=FlowFilterName(any_=[naming.FLOW_NAME])),
        deployment_filter=DeploymentFilter(name=DeploymentFilterName(any_=[name])),
    )
