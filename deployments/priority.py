"""``dicomflow priority``: a run that waits is given another priority."""

from __future__ import annotations

from uuid import UUID

import typer
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.filters import (
    FlowFilter,
    FlowFilterName,
    FlowRunFilter,
    FlowRunFilterName,
    FlowRunFilterState,
    FlowRunFilterStateType,
)
from prefect.client.schemas.objects import FlowRun, StateType
from prefect.client.schemas.sorting import FlowRunSort
from prefect.exceptions import ObjectNotFound

from deployments.errors import CommandError
from deployments.server_errors import told_in_one_line
from deployments.successor import place
from flows_engine.definition import naming

_MOST_NAMED = 5


class RunNotFoundError(CommandError):
    """No run is called so, or several are. The message says what there is."""


def set_priority(run: str, *, priority: int) -> None:
    """Have the run called ``run`` (see ``find_run``) wait with ``priority``, and print what was done.

    Raises ``RunNotFoundError``, ``MoveRefusedError`` and ``ServerUnreachableError``.
    """
    with get_client(sync_client=True) as client, told_in_one_line(client.api_url):
        placement = place(client, find_run(client, run), priority=priority)
    if placement.moved:
        typer.echo(f"run {placement.run.name} waits with priority {priority} now, as run {placement.run.id}")
    else:
        typer.echo(f"nothing to do: run {placement.run.id} ({placement.run.name}) waits with priority {priority}")


def find_run(client: SyncPrefectClient, called: str) -> FlowRun:
    """Return the run with this id, or the one whose name begins so: of those that wait, if any does.

    Raises ``RunNotFoundError``.
    """
    try:
        run_id = UUID(called)
    except ValueError:
        return _named(client, called)
    try:
        return client.read_flow_run(run_id)
    except ObjectNotFound:
        raise RunNotFoundError(f"Prefect has no run {called}; `dicomflow runs` lists them") from None


def _named(client: SyncPrefectClient, prefix: str) -> FlowRun:
    found = _with_name(client, prefix, StateType.SCHEDULED) or _with_name(client, prefix)
    if not found:
        raise RunNotFoundError(f"no run has a name that begins with {prefix!r}; `dicomflow runs` lists them")
    if len(found) > 1:
        named = ", ".join(f"{run.name} ({run.id})" for run in found[:_MOST_NAMED])
        more = ", …" if len(found) > _MOST_NAMED else ""
        raise RunNotFoundError(f"several runs have a name that begins with {prefix!r}: {named}{more}; give the id")
    return found[0]


def _with_name(client: SyncPrefectClient, prefix: str, *types: StateType) -> list[FlowRun]:
    state = FlowRunFilterState(type=FlowRunFilterStateType(any_=list(types))) if types else None
    found = client.read_flow_runs(
        flow_filter=FlowFilter(name=FlowFilterName(any_=[naming.FLOW_NAME])),
        flow_run_filter=FlowRunFilter(name=FlowRunFilterName(like_=prefix), state=state),
        sort=FlowRunSort.EXPECTED_START_TIME_DESC,
    )
    # Prefect finds the text anywhere in a name. Of a run and its successor, the first one leads to the other.
    return [run for run in found if run.name.startswith(prefix) and naming.MOVING_TAG not in run.tags]
