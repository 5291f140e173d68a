"""A waiting run goes to the queue of another priority: a successor takes its place.

Prefect (3.8) sets the queue of a run when the run is made, and never again. A run of the same parameters is made in the
other queue, and the first one is cancelled, with a message that says where it went. Three requests do it, and whoever
does them may die between any two, or not be the only one:

1. The successor is made, under a key that belongs to the first run, so that there is never a second one. No worker
   takes it yet (see ``_dormant``).
2. The first run is cancelled. Prefect has no "cancel unless it has begun", so its history is asked afterwards what it
   was that was cancelled. Prefect writes one state after the other: if the run waited, no worker can take it any more.
   If a worker had it, its process knows nothing of this and goes on; its state is put back, and the successor deleted.
3. The successor is woken. That is no change of its state, so it does no harm to one that was woken before.

Until the third, the successor is marked (``MOVING_TAG``), and the next worker that starts, or the same command given
again, does what is left to do. A study is never without a run that waits or may be woken, and never has two that run.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import takewhile
from typing import Any, Final
from uuid import UUID

from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas.actions import DeploymentFlowRunCreate
from prefect.client.schemas.filters import (
    FlowRunFilter,
    FlowRunFilterIdempotencyKey,
    FlowRunFilterState,
    FlowRunFilterStateType,
    FlowRunFilterTags,
    WorkPoolFilter,
    WorkPoolFilterName,
)
from prefect.client.schemas.objects import FlowRun, FlowRunPolicy, State, StateType
from prefect.client.schemas.responses import DeploymentResponse
from prefect.exceptions import ObjectNotFound
from prefect.states import Cancelled, Late, Scheduled, to_state_create

from deployments.errors import CommandError
from flows_engine.definition import naming

logger = logging.getLogger(__name__)

_KEY: Final = "instead-of:"
_MOST_UNFINISHED: Final = 200


class MoveRefusedError(CommandError):
    """A run cannot go to another queue. The message says why; nothing was changed."""


@dataclass(frozen=True, kw_only=True)
class Placement:
    """The run that waits where it was asked to be, and whether it had to be moved for that."""

    run: FlowRun
    moved: bool


def place(client: SyncPrefectClient, run: FlowRun, *, priority: int) -> Placement:
    """Have a waiting run, or what took its place since, wait in the queue of ``priority`` of its pool.

    Raises ``MoveRefusedError`` where it does not wait any more, or where it cannot be moved.
    """
    run = _newest(client, run)
    reason = why_it_stays(run)
    if reason:
        raise MoveRefusedError(f"run {run.id} ({run.name}) is not moved: {reason}")
    if run.work_queue_name == naming.work_queue(priority):
        return Placement(run=run, moved=False)
    deployment = _deployment_for(client, run, priority=priority)
    successor = _make_successor(client, run, deployment=deployment, priority=priority)
    if not _complete(client, successor):
        raise MoveRefusedError(f"run {run.id} ({run.name}) is not moved: it has just begun, and is not stopped")
    if successor.work_queue_name != naming.work_queue(priority):
        # Somebody else made it a moment earlier, for another priority.
        return place(client, successor, priority=priority)
    return Placement(run=successor, moved=True)


def finish_moves(client: SyncPrefectClient, *, pool: str | None = None) -> int:
    """Do what is left to do where a run, of ``pool`` or of any, was being moved when whoever did it died.

    Returns how many there were. May be done while others move runs.
    """
    unfinished = client.read_flow_runs(
        flow_run_filter=FlowRunFilter(
            tags=FlowRunFilterTags(all_=[naming.MANAGED_TAG, naming.MOVING_TAG]),
            state=FlowRunFilterState(type=FlowRunFilterStateType(any_=[StateType.SCHEDULED])),
        ),
        work_pool_filter=None if pool is None else WorkPoolFilter(name=WorkPoolFilterName(any_=[pool])),
        limit=_MOST_UNFINISHED,
    )
    for successor in unfinished:
        moved = _complete(client, successor)
        logger.warning(
            "run %s was to take the place of another: %s",
            successor.id,
            "now it does" if moved else "the other one has begun",
            extra={"action": "move_finished"},
        )
    return len(unfinished)


def why_it_stays(run: FlowRun) -> str:
    """Return why a run cannot be moved, in words; nothing where it can. Pure."""
    state = run.state
    if state is None or state.is_pending() or state.is_running() or state.is_cancelling():
        return f"it has begun ({state.name if state else 'without a state'}), and what has begun is not stopped"
    if state.is_final():
        return f"it is over ({state.name})"
    if state.is_paused():
        return "it is paused; resume it first"
    if run.run_count > 0:
        return "it has run before and goes on where that ended, which it can under its own id only"
    return ""


def _newest(client: SyncPrefectClient, run: FlowRun) -> FlowRun:
    """Return what has taken the place of ``run``, after whatever that still needs; ``run`` itself if nothing has."""
    found = client.read_flow_runs(
        flow_run_filter=FlowRunFilter(idempotency_key=FlowRunFilterIdempotencyKey(any_=[f"{_KEY}{run.id}"])), limit=1
    )
    for successor in found:
        if naming.MOVING_TAG not in successor.tags or _complete(client, successor):
            return _newest(client, successor)
    return client.read_flow_run(run.id) if found else run


def _deployment_for(client: SyncPrefectClient, run: FlowRun, *, priority: int) -> DeploymentResponse:
    """Return the deployment of ``run``. Prefect makes a successor only in the pool that a deployment has now."""
    refused = f"run {run.id} ({run.name}) is not moved:"
    pool, queue = run.work_pool_name, naming.work_queue(priority)
    try:
        deployment = client.read_deployment(run.deployment_id or run.id)
    except ObjectNotFound:
        raise MoveRefusedError(f"{refused} its flow is not deployed any more") from None
    if pool is None or deployment.work_pool_name != pool:
        raise MoveRefusedError(
            f"{refused} it waits in the work pool {pool}, and its flow now belongs to {deployment.work_pool_name}"
        )
    # Prefect would make a queue that is missing, in front of or behind the others as it happens.
    if queue not in {found.name for found in client.read_work_queues(work_pool_name=pool)}:
        raise MoveRefusedError(f"{refused} its work pool {pool} has no queue {queue}; `dicomflow deploy` makes it")
    return deployment


def _make_successor(
    client: SyncPrefectClient, run: FlowRun, *, deployment: DeploymentResponse, priority: int
) -> FlowRun:
    """Make the run that is to take the place of ``run``, or return it where it is there."""
    waits = Late if run.state_name == "Late" else Scheduled
    create = DeploymentFlowRunCreate(
        name=run.name,
        # It arrived when the first one did.
        state=to_state_create(
            waits(scheduled_time=run.expected_start_time, message=f"takes the place of run {run.id}")
        ),
        parameters=run.parameters,
        # They were valid when the first run was made; what a flow may be given can have changed since.
        enforce_parameter_schema=False,
        context=run.context,
        empirical_policy=_dormant(),
        tags=[*_tags_without_priority(run), naming.priority_tag(priority), naming.MOVING_TAG],
        labels={key: value for key, value in run.labels.items() if not key.startswith("prefect.")},
        idempotency_key=f"{_KEY}{run.id}",
        work_queue_name=naming.work_queue(priority),
        job_variables=run.job_variables or {},
    )
    response = client.request(
        "POST",
        "/deployments/{id}/create_flow_run",
        path_params={"id": deployment.id},
        json=create.model_dump(mode="json", exclude_unset=True),
    )
    return FlowRun.model_validate(response.json())


def _dormant() -> FlowRunPolicy:
    """Return the policy of a run that no worker takes: Prefect hands out none whose own process is to retry it.

    A scheduled time in the far future would do as well, but a run shows the first one it had for ever.
    """
    return FlowRunPolicy(retry_type="in_process")


def _tags_without_priority(run: FlowRun) -> list[str]:
    return [tag for tag in run.tags if not naming.is_priority_tag(tag)]


def _complete(client: SyncPrefectClient, successor: FlowRun) -> bool:
    """Let ``successor`` take its place. Where the run before it has begun, delete it instead and return False."""
    replaced = UUID((successor.idempotency_key or "").removeprefix(_KEY))
    message = f"moved to the queue {successor.work_queue_name}, as run {successor.id}"
    if not _withdraw(client, replaced, message=message):
        with suppress(ObjectNotFound):
            client.delete_flow_run(successor.id)
        return False
    if naming.MOVING_TAG in successor.tags:
        _wake(client, successor)
    return True


def _wake(client: SyncPrefectClient, successor: FlowRun) -> None:
    # A deployment gives its runs its own tags as well, its priority among them.
    tags = [tag for tag in _tags_without_priority(successor) if tag != naming.MOVING_TAG]
    priority = naming.priority_of(successor.work_queue_name or "")
    own = [] if priority is None else [naming.priority_tag(priority)]
    with suppress(ObjectNotFound):
        client.update_flow_run(successor.id, tags=[*tags, *own], empirical_policy=FlowRunPolicy())


def _withdraw(client: SyncPrefectClient, run_id: UUID, *, message: str) -> bool:
    """Cancel a run that waits, and tell whether it did: False where a worker had it, or where it is over."""
    try:
        if client.read_flow_run(run_id).state_type == StateType.SCHEDULED:
            client.set_flow_run_state(run_id, Cancelled(message=message))
        states = client.read_flow_run_states(run_id)
    except ObjectNotFound:
        return True  # whoever deleted it, it will not run
    before = cancelled_from(states, message=message)
    if before is None:
        return False
    if before.is_scheduled():
        return True
    client.set_flow_run_state(run_id, before, force=True)
    return False


def cancelled_from(states: Sequence[State[Any]], *, message: str) -> State[Any] | None:
    """Return the state in which a run was when it was cancelled with ``message``; None where it is not so cancelled.

    ``states`` are all states of the run, oldest first.
    """
    ours = list(takewhile(lambda state: state.is_cancelled() and state.message == message, reversed(states)))
    return states[-len(ours) - 1] if 0 < len(ours) < len(states) else None
