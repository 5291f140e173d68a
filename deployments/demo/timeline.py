"""When what happened to one study, as Prefect recorded it."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

import httpx


@dataclass(frozen=True, kw_only=True)
class Moment:
    """One thing that happened."""

    at: datetime
    what: str


@dataclass(frozen=True, kw_only=True)
class RunSummary:
    """One flow run, as the API tells it: where it is, and what it did so far."""

    run_id: str
    name: str
    state: str
    message: str
    finished: bool
    moments: tuple[Moment, ...]


_FINAL_TYPES = {"COMPLETED", "FAILED", "CRASHED", "CANCELLED"}


def read_runs(api_url: str) -> list[RunSummary]:
    """Return all flow runs of a Prefect server, oldest first."""
    runs = _post(f"{api_url}/flow_runs/filter", {"sort": "EXPECTED_START_TIME_ASC"})
    return [_summary(api_url, run) for run in runs]


def _summary(api_url: str, run: dict[str, object]) -> RunSummary:
    parameters = run["parameters"]
    assert isinstance(parameters, dict)
    state = run["state"]
    assert isinstance(state, dict)
    moments = [
        Moment(
            at=datetime.fromisoformat(str(parameters["received_at"])), what="received: the sender's association ended"
        ),
        Moment(at=datetime.fromisoformat(str(run["created"])), what="matched and queued"),
    ]
    for task in _post(f"{api_url}/task_runs/filter", {"flow_runs": {"id": {"any_": [run["id"]]}}}):
        if task["start_time"]:
            moments.append(Moment(at=datetime.fromisoformat(str(task["start_time"])), what=f"{task['name']} started"))
        if task["end_time"]:
            moments.append(
                Moment(at=datetime.fromisoformat(str(task["end_time"])), what=f"{task['name']} {task['state_name']}")
            )
    if state["type"] in _FINAL_TYPES:
        moments.append(Moment(at=datetime.fromisoformat(str(state["timestamp"])), what=f"run {state['name']}"))
    return RunSummary(
        run_id=str(run["id"]),
        name=str(run["name"]),
        state=str(state["name"]),
        message=str(state["message"] or ""),
        finished=state["type"] in _FINAL_TYPES,
        moments=tuple(sorted(moments, key=lambda moment: moment.at)),
    )


def _post(url: str, body: dict[str, object]) -> list[dict[str, object]]:
    response = httpx.post(url, json=body, timeout=30)
    response.raise_for_status()
    found: list[dict[str, object]] = response.json()
    return found
