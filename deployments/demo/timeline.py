"""When what happened to one study: as the gateway's ledger has it, and as Prefect recorded it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import httpx

from dicom_gateway.wiring import open_ledger


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


def read_runs(api_url: str, *, data_dir: Path) -> list[RunSummary]:
    """Return all flow runs of a Prefect server whose gateway has ``data_dir``, oldest first."""
    return [
        _summary(api_url, run, data_dir) for run in _post(f"{api_url}/flow_runs/filter", {"sort": "START_TIME_ASC"})
    ]


def _summary(api_url: str, run: dict[str, Any], data_dir: Path) -> RunSummary:
    state = run["state"]
    finished = state["type"] in _FINAL_TYPES
    moments = [
        *_received(data_dir, study_id=run["parameters"]["study_id"]),
        _moment(run["created"], "queued"),
        *_tasks(api_url, run_id=run["id"]),
    ]
    if finished:
        moments.append(_moment(state["timestamp"], f"run {state['name']}"))
    return RunSummary(
        run_id=run["id"],
        name=run["name"],
        state=state["name"],
        message=state["message"] or "",
        finished=finished,
        moments=tuple(sorted(moments, key=lambda moment: moment.at)),
    )


def _received(data_dir: Path, *, study_id: str) -> Iterator[Moment]:
    ledger = open_ledger(data_dir)
    try:
        study = ledger.study(study_id)
    finally:
        ledger.close()
    if study is None:
        return
    yield Moment(at=study.received_at, what="receiving")
    yield Moment(at=study.committed_at, what=f"received: {study.instance_count} instances are on disk")
    if study.decided_at is not None:
        yield Moment(at=study.decided_at, what="matched")


def _tasks(api_url: str, *, run_id: str) -> Iterator[Moment]:
    for task in _post(f"{api_url}/task_runs/filter", {"flow_runs": {"id": {"any_": [run_id]}}}):
        if task["start_time"]:
            yield _moment(task["start_time"], f"{task['name']} started")
        if task["end_time"]:
            yield _moment(task["end_time"], f"{task['name']} {task['state_name']}")


def _moment(at: str, what: str) -> Moment:
    return Moment(at=datetime.fromisoformat(at), what=what)


def _post(url: str, body: dict[str, Any]) -> list[dict[str, Any]]:
    response = httpx.post(url, json=body, timeout=30)
    response.raise_for_status()
    found: list[dict[str, Any]] = response.json()
    return found
