"""Which errors of a task are worth another attempt."""

from __future__ import annotations

from typing import Any, Final

from prefect import State, Task
from prefect.cache_policies import INPUTS, RUN_ID
from prefect.client.schemas.objects import TaskRun

from flows_engine.definition.schema import Model
from flows_engine.errors import RetryableError

# A result is kept for the retry of its run, also for one by a later version: not by the text of the task's function, as
# Prefect would have it.
BY_PARAMETERS: Final = INPUTS + RUN_ID
_RETRIES: Final = 2
_DELAYS_SECONDS: Final = (10.0, 60.0)


def may_pass(_task: Task[..., Any], _run: TaskRun, state: State[Any]) -> bool:
    """Tell whether what ended an attempt is something that passes by itself."""
    return isinstance(state.data, RetryableError)


def retries(model: Model) -> int:
    """Return how often a model is tried again after an error that may pass."""
    return _RETRIES if model.retries is None else model.retries


def retry_delays_seconds(model: Model) -> list[float]:
    """Return how long to wait before each further attempt. Prefect repeats the last of them."""
    return list(model.retry_delay_seconds or _DELAYS_SECONDS)
