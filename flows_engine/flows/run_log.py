"""What a run's log in Prefect's UI is spared: tracebacks of failures whose reason stands in one line."""

from __future__ import annotations

import logging

from prefect.exceptions import FailedRun

from flows_engine.errors import EngineError
from flows_engine.tasks.unforeseen import kind_of


class _WithoutForeseenTracebacks(logging.Filter):
    """Takes the traceback from what Prefect logs of an ``EngineError``, whose message says it all.

    What Prefect logs when a flow has returned a failed state is dropped: it is nothing but a traceback of Prefect's own
    functions, below the reason. An ``OSError``, whose text names files, is told by its type and number. Other errors
    that nobody foresaw keep their traceback: those of our own work have been through ``unforeseen_in_one_line``.
    """

    def filter(self, record: logging.LogRecord) -> bool:
        error = record.exc_info[1] if record.exc_info else None
        if isinstance(error, EngineError):
            record.exc_info = None
        elif isinstance(error, OSError):
            record.exc_info = None
            record.msg, record.args = "unforeseen %s", (kind_of(error),)
        return not isinstance(error, FailedRun)


_FILTER = _WithoutForeseenTracebacks()


def spare_foreseen_tracebacks() -> None:
    """Keep the run logs of this process to what a person needs. May be called twice."""
    for name in ("prefect.flow_runs", "prefect.task_runs"):
        logging.getLogger(name).addFilter(_FILTER)
