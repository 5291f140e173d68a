"""Which errors of a task are worth another attempt."""

from __future__ import annotations

from typing import Any

from prefect import State, Task
from prefect.client.schemas.objects import TaskRun

from flows_engine.errors import RetryableError


def may_pass(_task: Task[..., Any], _run: TaskRun, state: State[Any]) -> bool:
    """Tell whether what ended an attempt is something that passes by itself."""
    return isinstance(state.data, RetryableError)
