"""``dicomflow runs``: how far the runs are, as Prefect tells of them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final

from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.filters import (
    FlowFilter,
    FlowFilterName,
    FlowRunFilter,
    FlowRunFilterName,
    FlowRunFilterState,
    FlowRunFilterStateName,
    FlowRunFilterStateType,
    FlowRunFilterTags,
)
from prefect.client.schemas.objects import FlowRun, StateType
from prefect.client.schemas.sorting import FlowRunSort
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from deployments.ages import age, age_seconds
from deployments.server_errors import told_in_one_line
from deployments.state_choice import StateChoice
from flows_engine.definition import naming
from flows_engine.definition.state_codes import StateCode, state_code

_WIDEST: Final = 10_000
_PAGE: Final = 200


@dataclass(frozen=True, kw_only=True)
class RunLine:
    """One run. Every text is one line, and nothing of a patient is in it."""

    code: StateCode
    state: str
    since: datetime
    """When it came into this state."""
    message: str
    """What its state says: why it failed, what it sent."""
    flow: str
    reason: str
    """Why there is this run: its study was received, or is processed again."""
    note: str
    """What the person wrote who had it processed again."""
    priority: int | None
    work_pool: str
    run_id: str
    run_name: str
    study_id: str


def print_runs(
    console: Console, *, limit: int, states: StateChoice | None, study_id: str, flow: str, as_json: bool
) -> None:
    """Print the newest runs that fit. Raises ``ServerUnreachableError``."""
    with get_client(sync_client=True) as client, told_in_one_line(client.api_url):
        lines = read_runs(client, limit=limit, states=states, study_id=study_id, flow=flow)
    now = datetime.now(UTC)
    if as_json:
        console.file.write(json.dumps([as_object(line, now=now) for line in lines], indent=2) + "\n")
    elif lines:
        # One line a run, however narrow the terminal: ids are to be copied, and lines to be searched.
        Console(file=console.file, width=_WIDEST).print(_table(lines, now=now))
    else:
        console.print("no run fits", markup=False, highlight=False)


def read_runs(
    client: SyncPrefectClient,
    *,
    limit: int,
    states: StateChoice | None = None,
    study_id: str = "",
    flow: str = "",
) -> tuple[RunLine, ...]:
    """Return the runs that fit, those whose study arrived last at the front, at most ``limit`` of them."""
    runs = FlowRunFilter(
        state=_state_filter(states) if states else None,
        tags=FlowRunFilterTags(all_=[naming.study_tag(study_id)]) if study_id else None,
        # Not by the deployment: that is deleted when the definition is gone, and the runs stay.
        name=FlowRunFilterName(like_=naming.run_name(flow, "")) if flow else None,
    )
    found: list[RunLine] = []
    seen = 0
    while len(found) < limit:
        page = client.read_flow_runs(
            flow_filter=FlowFilter(name=FlowFilterName(any_=[naming.FLOW_NAME])),
            flow_run_filter=runs,
            sort=FlowRunSort.EXPECTED_START_TIME_DESC,
            limit=min(_PAGE, limit - len(found)),
            offset=seen,
        )
        if not page:
            break
        seen += len(page)
        # Prefect looks for a part of the name, whatever its case.
        lines = (run_line(run) for run in page)
        found += (line for line in lines if line is not None and flow in {"", line.flow})
    return tuple(found)


def _state_filter(states: StateChoice) -> FlowRunFilterState:
    return FlowRunFilterState(
        type=FlowRunFilterStateType(any_=[StateType(type_) for type_ in states.types]) if states.types else None,
        name=(
            FlowRunFilterStateName(any_=list(states.names) or None, not_any_=list(states.not_names) or None)
            if states.names or states.not_names
            else None
        ),
    )


def run_line(run: FlowRun) -> RunLine | None:
    """Return what is told of a run; None of one without a state, which is being made at this moment. Pure."""
    state = run.state
    if state is None or state.name is None:
        return None
    definition = run.parameters.get("definition")
    flow = definition.get("name") if isinstance(definition, Mapping) else None
    return RunLine(
        code=state_code(type_=state.type.value, name=state.name),
        state=_one_line(state.name),
        since=state.timestamp,
        message=_one_line(state.message),
        flow=_one_line(flow),
        reason=_one_line(run.parameters.get("reason")) or "received",
        note=_one_line(run.parameters.get("note")),
        priority=naming.priority_of(run.work_queue_name or ""),
        work_pool=run.work_pool_name or "",
        run_id=str(run.id),
        run_name=_one_line(run.name),
        study_id=_one_line(run.parameters.get("study_id")),
    )


def as_object(line: RunLine, *, now: datetime) -> dict[str, Any]:
    """Return a run for scripts. ``since`` is in ISO 8601, with its offset from UTC."""
    return {
        **{name: getattr(line, name) for name in RunLine.__dataclass_fields__},
        "code": line.code.value,
        "since": line.since.astimezone().isoformat(timespec="milliseconds"),
        "age_seconds": age_seconds(line.since, now=now),
    }


def _table(lines: Sequence[RunLine], *, now: datetime) -> Table:
    table = Table(box=None, pad_edge=False)
    table.add_column("code", justify="right")
    for heading in ("state", "since", "flow", "reason", "run", "study", "message"):
        table.add_column(heading, no_wrap=True)
    for line in lines:
        since = f"{line.since.astimezone():%Y-%m-%d %H:%M:%S} ({age(age_seconds(line.since, now=now))})"
        reason = f"{line.reason}: {line.note}" if line.note else line.reason
        cells = (line.state, since, line.flow, reason, line.run_id, line.study_id, line.message)
        table.add_row(str(line.code.value), *(escape(cell) for cell in cells))
    return table


def _one_line(text: object) -> str:
    """Return a text on one line, without what a terminal would take for a command; nothing for what is no text."""
    if not isinstance(text, str):
        return ""
    return "".join(character for character in " ".join(text.split()) if character.isprintable())
