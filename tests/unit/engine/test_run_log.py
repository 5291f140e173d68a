from __future__ import annotations

import logging
from collections.abc import Iterator

import pytest
from prefect.exceptions import FailedRun

from flows_engine.errors import DestinationUnavailableError
from flows_engine.flows.run_log import spare_foreseen_tracebacks


@pytest.fixture(params=["prefect.flow_runs", "prefect.task_runs"])
def logger(request: pytest.FixtureRequest, caplog: pytest.LogCaptureFixture) -> Iterator[logging.Logger]:
    chosen = logging.getLogger(request.param)
    filters = list(chosen.filters)
    chosen.addHandler(caplog.handler)  # Prefect's own configuration may keep records from the root logger
    yield chosen
    chosen.removeHandler(caplog.handler)
    chosen.filters[:] = filters


def _log(logger: logging.Logger, error: Exception) -> None:
    try:
        raise error
    except Exception:
        logger.exception("it failed: %s", error)


def test_only_what_nobody_foresaw_keeps_its_traceback(logger: logging.Logger, caplog: pytest.LogCaptureFixture) -> None:
    spare_foreseen_tracebacks()
    spare_foreseen_tracebacks()
    _log(logger, FailedRun("returned"))
    _log(logger, DestinationUnavailableError("down"))
    _log(logger, ValueError("unforeseen"))
    _log(logger, PermissionError(13, "Permission denied", "/studies/DOE^JANE"))
    told = {record.getMessage(): bool(record.exc_info) for record in caplog.records}
    assert told == {
        "it failed: down": False,
        "it failed: unforeseen": True,
        "unforeseen PermissionError (errno 13)": False,
    }
