"""Flow runs whose process is gone without a word: a power cut, a host that was switched off, Ctrl-C.

Prefect would show them as Running for ever. A worker that starts takes up those of its own host: finished models are
not run again, so a run goes on where it was cut off.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas.filters import (
    FlowFilter,
    FlowFilterName,
    FlowRunFilter,
    FlowRunFilterDeploymentId,
    FlowRunFilterState,
    FlowRunFilterStateName,
    FlowRunFilterStateType,
    FlowRunFilterTags,
    WorkerFilter,
    WorkerFilterStatus,
    WorkPoolFilter,
    WorkPoolFilterName,
)
from prefect.client.schemas.objects import FlowRun, State, StateType, WorkerStatus
from prefect.states import AwaitingRetry, Cancelled, Crashed

from flows_engine.definition.naming import FLOW_NAME, HOST_LOST, REPROCESS_FLOW_NAME, study_tags
from flows_engine.definition.state_codes import CODE_OF_NAME
from flows_engine.handoff.run_claim import began_here, is_claimed

logger = logging.getLogger(__name__)

_MOST_STARTS: Final = 5
_PAGE: Final = 200
# From its submission by a worker that has since died, a run's process takes seconds until it claims the run.
_SETTLING_SECONDS: Final = 30.0


def resume_stranded_runs(
    client: SyncPrefectClient,
    *,
    pool: str,
    worker_name: str,
    runs_folder: Path,
    remove_containers: Callable[[str], int],
    when_cancelled: Callable[[str], object] = lambda _: None,
) -> int:
    """Schedule the stranded runs of this host again and return how many there were. For before a worker starts.

    A run that another host may be executing is left alone. One that was started many times is given up, visibly: it is
    probably what kills its process. ``when_cancelled`` gets the id of each run that was being cancelled, and does what
    its own process no longer can.
    """
    alone = not _other_workers(client, pool=pool, worker_name=worker_name)
    resumed = 0
    for run in _unfinished(client, pool=pool):
        folder = runs_folder / str(run.id)
        if not began_here(folder):
            if not alone:
                continue
            _let_settle(run, folder)
        if is_claimed(folder):
            continue
        remove_containers(str(run.id))
        if run.state_type == StateType.CANCELLING:
            when_cancelled(str(run.id))
        _resume(client, run)
        resumed += 1
    for run in _given_up(client, pool=pool):
        folder = runs_folder / str(run.id)
        # Whose process lives was cut off from the server only, and will say how it ended. In place of one that seemed
        # to be lost, a person may have had the study processed again.
        if began_here(folder) and not is_claimed(folder) and not _has_a_later_one(client, run):
            remove_containers(str(run.id))
            _resume(client, run)
            resumed += 1
    return resumed


def _other_workers(client: SyncPrefectClient, *, pool: str, worker_name: str) -> bool:
    online = WorkerFilter(status=WorkerFilterStatus(any_=[WorkerStatus.ONLINE]))
    workers = client.read_workers_for_work_pool(pool, worker_filter=online)
    return any(worker.name != worker_name for worker in workers)


def _unfinished(client: SyncPrefectClient, *, pool: str) -> list[FlowRun]:
    begun = FlowRunFilterStateType(any_=[StateType.PENDING, StateType.RUNNING, StateType.CANCELLING])
    return _in_states(client, FlowRunFilterState(type=begun), pool=pool)


def _given_up(client: SyncPrefectClient, *, pool: str) -> list[FlowRun]:
    """Return the runs that were made Crashed because nothing was heard of their host."""
    return _in_states(client, FlowRunFilterState(name=FlowRunFilterStateName(any_=[HOST_LOST])), pool=pool)


def _has_a_later_one(client: SyncPrefectClient, run: FlowRun) -> bool:
    """Tell whether the same flow was run on the same study since."""
    study = study_tags(run.tags)
    same = FlowRunFilter(
        tags=FlowRunFilterTags(all_=study), deployment_id=FlowRunFilterDeploymentId(any_=[run.deployment_id])
    )
    if not study or run.deployment_id is None:
        return False
    made = run.created or datetime.now(UTC)
    return any(other.created and other.created > made for other in client.read_flow_runs(flow_run_filter=same))


def _in_states(client: SyncPrefectClient, states: FlowRunFilterState, *, pool: str) -> list[FlowRun]:
    found: list[FlowRun] = []
    while len(found) % _PAGE == 0:
        page = client.read_flow_runs(
            flow_filter=FlowFilter(name=FlowFilterName(any_=[FLOW_NAME, REPROCESS_FLOW_NAME])),
            flow_run_filter=FlowRunFilter(state=states),
            work_pool_filter=WorkPoolFilter(name=WorkPoolFilterName(any_=[pool])),
            limit=_PAGE,
            offset=len(found),
        )
        if not page:
            break
        found += page
    return found


def _let_settle(run: FlowRun, folder: Path) -> None:
    begun = run.state.timestamp if run.state else datetime.now(UTC)
    while not began_here(folder) and (datetime.now(UTC) - begun).total_seconds() < _SETTLING_SECONDS:
        time.sleep(0.5)


def _resume(client: SyncPrefectClient, run: FlowRun) -> None:
    if run.state is not None and run.state.type == StateType.CANCELLING:
        state: State[Any] = Cancelled(message="its process was gone before it could be cancelled")
    elif (starts := _starts(client, run)) >= _MOST_STARTS:
        state = Crashed(message=f"its process was gone after each of {starts} starts; retry it by hand")
    else:
        state = AwaitingRetry(message="its process was gone; it goes on where it was cut off")
    client.set_flow_run_state(run.id, state, force=True)
    logger.warning("run %s was stranded; now %s", run.id, state.name, extra={"action": "run_resumed"})


def _starts(client: SyncPrefectClient, run: FlowRun) -> int:
    # Not its run_count: that counts Finished and Sending as well, which are of the same type.
    states = client.read_flow_run_states(run.id)
    return sum(state.is_running() and state.name not in CODE_OF_NAME for state in states)
