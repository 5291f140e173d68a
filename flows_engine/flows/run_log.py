"""What a run's log in Prefect's UI is spared: tracebacks of failures whose reason stands in one line."""

from __future__ import annotations

import logging

from prefect.exceptions import FailedRun

from flows_engine.errors import EngineError


class _WithoutForeseenTracebacks(logging.Filter):
    """Takes the traceback from what Prefect logs of an ``EngineError``, whose message says it all.

    What Prefect logs when a flow has returned a failed state is dropped: it is nothing but a traceback of Prefect's own
    functions, below the reason. An error that nobody foresaw keeps its traceback.
    """

    def filter(self, record: logging.LogRecord) -> bool:
        error = record.exc_info[1] if record.exc_info else None
        if isinstance(error, EngineError):
            record.exc_info = None
        return not isinstance(error, FailedRun)


_FILTER = _WithoutForeseenTracebacks()


def spare_foreseen_tracebacks() -> None:
    """Keep the run logs of this process to what a person needs. May be called twice."""
    for name in ("prefect.flow_runs", "prefect.task_runs"):
        logging.getLogger(name).addFilter(_FILTER)
