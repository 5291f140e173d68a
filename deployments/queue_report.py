"""``dicomflow queue``: what waits, for how long, and whether anybody is there to take it.

Counted by Prefect, queue by queue: ten thousand waiting runs are no more work than ten.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import Final

from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.filters import (
    FlowRunFilter,
    FlowRunFilterState,
    FlowRunFilterStateType,
    WorkerFilter,
    WorkerFilterStatus,
    WorkPoolFilter,
    WorkPoolFilterName,
    WorkQueueFilter,
    WorkQueueFilterId,
)
from prefect.client.schemas.objects import FlowRun, StateType, WorkerStatus, WorkPool, WorkQueue
from prefect.client.schemas.sorting import FlowRunSort
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from deployments.ages import age, age_seconds
from deployments.server_errors import told_in_one_line

_WAITING: Final = (StateType.SCHEDULED,)
_BUSY: Final = (StateType.PENDING, StateType.RUNNING, StateType.CANCELLING)
_WIDEST: Final = 10_000


@dataclass(frozen=True, kw_only=True)
class QueueDepth:
    """One work queue. ``oldest_seconds`` is the age of the run that is taken next from it, None where none waits."""

    name: str
    prefect_priority: int
    """1 is served first."""
    waiting: int
    oldest_seconds: int | None
    paused: bool
    concurrency_limit: int | None


@dataclass(frozen=True, kw_only=True)
class OnlineWorker:
    """A worker that Prefect hears of. ``slots`` is how many runs it takes at once, None where this host cannot know."""

    name: str
    slots: int | None


@dataclass(frozen=True, kw_only=True)
class PoolDepth:
    """One work pool. ``running`` counts what a worker has taken; queues stand in the order in which they are served."""

    name: str
    running: int
    waiting: int
    paused: bool
    concurrency_limit: int | None
    workers: tuple[OnlineWorker, ...]
    queues: tuple[QueueDepth, ...]


def print_queues(console: Console, *, own_slots: Mapping[str, int], as_json: bool) -> None:
    """Print what waits in every pool. ``own_slots`` tells the slots of this host's workers, by their names.

    Raises ``ServerUnreachableError``.
    """
    with get_client(sync_client=True) as client, told_in_one_line(client.api_url):
        pools = read_pools(client, own_slots=own_slots, now=datetime.now(UTC))
    if as_json:
        console.file.write(json.dumps([asdict(pool) for pool in pools], indent=2) + "\n")
        return
    if not pools:
        console.print("Prefect has no work pool yet; `dicomflow deploy` makes them", markup=False, highlight=False)
    wide = Console(file=console.file, width=_WIDEST)
    for pool in pools:
        wide.print(headline(pool), markup=False, highlight=False)
        worth_a_line = [queue for queue in pool.queues if queue.waiting or queue.paused or queue.concurrency_limit]
        if worth_a_line:
            wide.print(_table(worth_a_line))


def read_pools(client: SyncPrefectClient, *, own_slots: Mapping[str, int], now: datetime) -> tuple[PoolDepth, ...]:
    """Return all work pools of the server, by name."""
    pools = sorted(client.read_work_pools(), key=lambda pool: pool.name)
    return tuple(_pool(client, pool, own_slots=own_slots, now=now) for pool in pools)


def headline(pool: PoolDepth) -> str:
    """Return what is to be known of a pool at once: above all, why nothing starts. Pure."""
    parts = [f"{pool.running} running" + ("" if pool.concurrency_limit is None else f" of {pool.concurrency_limit}")]
    parts.append(f"{pool.waiting} waiting")
    if pool.paused:
        parts.append("paused: nothing starts before it is resumed")
    if pool.workers:
        named = (worker.name + (f" ({_slots(worker.slots)})" if worker.slots else "") for worker in pool.workers)
        parts.append(f"served by {', '.join(named)}")
    else:
        parts.append("no worker serves this pool")
    return f"{pool.name}: {'; '.join(parts)}"


def _slots(slots: int) -> str:
    return "1 slot" if slots == 1 else f"{slots} slots"


def _pool(client: SyncPrefectClient, pool: WorkPool, *, own_slots: Mapping[str, int], now: datetime) -> PoolDepth:
    online = WorkerFilter(status=WorkerFilterStatus(any_=[WorkerStatus.ONLINE]))
    workers = sorted(worker.name for worker in client.read_workers_for_work_pool(pool.name, worker_filter=online))
    of_pool = WorkPoolFilter(name=WorkPoolFilterName(any_=[pool.name]))
    waiting = client.count_flow_runs(flow_run_filter=_in_state(_WAITING), work_pool_filter=of_pool)
    queues = sorted(client.read_work_queues(work_pool_name=pool.name), key=lambda queue: queue.priority)
    return PoolDepth(
        name=pool.name,
        running=client.count_flow_runs(flow_run_filter=_in_state(_BUSY), work_pool_filter=of_pool),
        waiting=waiting,
        paused=pool.is_paused,
        concurrency_limit=pool.concurrency_limit,
        workers=tuple(OnlineWorker(name=name, slots=own_slots.get(name)) for name in workers),
        queues=tuple(_queue(client, queue, any_waits=waiting > 0, now=now) for queue in queues),
    )


def _queue(client: SyncPrefectClient, queue: WorkQueue, *, any_waits: bool, now: datetime) -> QueueDepth:
    of_queue = WorkQueueFilter(id=WorkQueueFilterId(any_=[queue.id]))
    waiting = (
        client.count_flow_runs(flow_run_filter=_in_state(_WAITING), work_queue_filter=of_queue) if any_waits else 0
    )
    return QueueDepth(
        name=queue.name,
        prefect_priority=queue.priority,
        waiting=waiting,
        oldest_seconds=_oldest_seconds(client, of_queue, now=now) if waiting else None,
        paused=queue.is_paused,
        concurrency_limit=queue.concurrency_limit,
    )


def _oldest_seconds(client: SyncPrefectClient, of_queue: WorkQueueFilter, *, now: datetime) -> int | None:
    found = client.read_flow_runs(
        flow_run_filter=_in_state(_WAITING),
        work_queue_filter=of_queue,
        sort=FlowRunSort.NEXT_SCHEDULED_START_TIME_ASC,
        limit=1,
    )
    return age_seconds(_arrival(found[0]), now=now) if found else None


def _arrival(run: FlowRun) -> datetime:
    return run.expected_start_time or run.created or datetime.now(UTC)


def _in_state(types: Sequence[StateType]) -> FlowRunFilter:
    return FlowRunFilter(state=FlowRunFilterState(type=FlowRunFilterStateType(any_=list(types))))


def _table(queues: Sequence[QueueDepth]) -> Table:
    table = Table(box=None, pad_edge=False, show_header=False)
    for justify in ("left", "right", "left", "left"):
        table.add_column(justify=justify, no_wrap=True)
    for queue in queues:
        oldest = "" if queue.oldest_seconds is None else f"the first for {age(queue.oldest_seconds)}"
        remarks = ["paused: nothing in it starts before it is resumed"] if queue.paused else []
        if queue.concurrency_limit is not None:
            remarks.append(f"at most {queue.concurrency_limit} at once")
        table.add_row(f"  {escape(queue.name)}", f"{queue.waiting} waiting", oldest, "; ".join(remarks))
    return table
