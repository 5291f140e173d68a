"""Flows that a worker runs in tests: they do what they are told, in Python."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import prefect
from prefect import Flow, State
from prefect.client.schemas.objects import FlowRun


def _note(flow: Flow[..., Any], flow_run: FlowRun, state: State[Any]) -> None:
    (Path(flow_run.parameters["folder"]) / f"hook-{state.name}").write_text(state.message or "")


@prefect.flow(name="act", on_crashed=[_note], on_cancellation=[_note], log_prints=True)
def act(code: str, folder: str) -> None:
    """Execute ``code``, which may leave files in ``folder``."""
    exec(code, {"folder": Path(folder), "__name__": "act"})
