"""What a run's log in Prefect's UI is spared."""

from __future__ import annotations

import logging

from prefect.exceptions import FailedRun

_RUN_LOGGER = "prefect.flow_runs"


class _AfterTheReason(logging.Filter):
    """Drops what Prefect logs when a flow has returned a failed state: a traceback of Prefect's own functions.

    The reason stands above it, in one line; an error that nobody foresaw keeps its traceback.
    """

    def filter(self, record: logging.LogRecord) -> bool:
        return not (record.exc_info and isinstance(record.exc_info[1], FailedRun))


_AFTER_THE_REASON = _AfterTheReason()


def end_with_the_reason() -> None:
    """Let this process's run logs end with the reason of a failure. May be called twice."""
    logging.getLogger(_RUN_LOGGER).addFilter(_AFTER_THE_REASON)
