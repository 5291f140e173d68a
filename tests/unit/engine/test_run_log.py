from __future__ import annotations

import logging

import pytest
from prefect.exceptions import FailedRun

from flows_engine.flows.run_log import end_with_the_reason


def _log_with_trace(error: Exception) -> None:
    try:
        raise error
    except Exception:
        logging.getLogger("prefect.flow_runs").exception("the engine stops")


def test_only_the_traceback_of_a_told_failure_is_left_out(caplog: pytest.LogCaptureFixture) -> None:
    logger = logging.getLogger("prefect.flow_runs")
    logger.addHandler(caplog.handler)  # Prefect's own configuration may keep records from the root logger
    before = list(logger.filters)
    try:
        end_with_the_reason()
        end_with_the_reason()
        assert len(logger.filters) == len(before) + 1
        _log_with_trace(FailedRun("told"))
        assert caplog.records == []
        _log_with_trace(ValueError("unforeseen"))
        assert "the engine stops" in {record.getMessage() for record in caplog.records}
    finally:
        logger.filters[:] = before
        logger.removeHandler(caplog.handler)
