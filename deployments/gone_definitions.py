"""Runs that wait while the definition of their flow is gone: they say so, by a tag, until it comes back.

They are run all the same, since a run carries its definition.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import count
from typing import Final
from uuid import UUID

from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas.filters import (
    FlowRunFilter,
    FlowRunFilterDeploymentId,
    FlowRunFilterState,
    FlowRunFilterStateType,
    FlowRunFilterTags,
)
from prefect.client.schemas.objects import FlowRun, StateType
from prefect.client.schemas.sorting import FlowRunSort

from deployments.server_errors import unless_it_is_gone
from flows_engine.definition.naming import GONE_TAG

_PAGE: Final = 200


def mark_waiting_runs(client: SyncPrefectClient, deployment_id: UUID) -> None:
    """Have every run of a deployment that waits say that its definition is gone. May be done again at any time."""
    waiting = FlowRunFilter(
        deployment_id=FlowRunFilterDeploymentId(any_=[deployment_id]),
        state=FlowRunFilterState(type=FlowRunFilterStateType(any_=[StateType.SCHEDULED])),
    )
    for run in list(_runs(client, waiting)):
        if GONE_TAG not in run.tags:
            _retag(client, run, [*run.tags, GONE_TAG])


def unmark_runs(client: SyncPrefectClient, deployment_id: UUID) -> None:
    """Take back what ``mark_waiting_runs`` did."""
    marked = FlowRunFilter(
        deployment_id=FlowRunFilterDeploymentId(any_=[deployment_id]), tags=FlowRunFilterTags(all_=[GONE_TAG])
    )
    for run in list(_runs(client, marked)):
        _retag(client, run, [tag for tag in run.tags if tag != GONE_TAG])


def _runs(client: SyncPrefectClient, wanted: FlowRunFilter) -> Iterator[FlowRun]:
    # Runs that start between two pages leave at the end of this order, so that no page skips one that waits.
    for page in count():
        found = client.read_flow_runs(
            flow_run_filter=wanted, sort=FlowRunSort.EXPECTED_START_TIME_DESC, limit=_PAGE, offset=page * _PAGE
        )
        yield from found
        if len(found) < _PAGE:
            return


def _retag(client: SyncPrefectClient, run: FlowRun, tags: list[str]) -> None:
    with unless_it_is_gone():
        client.update_flow_run(run.id, tags=tags)
