from __future__ import annotations

import logging

import pytest

from flows_engine.errors import EngineError, GpuUnavailableError
from flows_engine.tasks.unforeseen import unforeseen_in_one_line

LOGGER = logging.getLogger("test.unforeseen")


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (ValueError("DOE^JANE is odd"), "ValueError"),
        (PermissionError(13, "Permission denied", "/out/DOE^JANE"), r"PermissionError \(errno 13\)"),
    ],
)
def test_an_unforeseen_error_is_told_by_its_type_and_its_place_only(
    error: Exception, kind: str, caplog: pytest.LogCaptureFixture
) -> None:
    with pytest.raises(EngineError, match=f"^it ended with an unforeseen {kind}$"), unforeseen_in_one_line(LOGGER):
        raise error
    assert "test_unforeseen.py" in caplog.text
    assert "DOE" not in caplog.text


def test_a_foreseen_error_stays_what_it_is(caplog: pytest.LogCaptureFixture) -> None:
    with pytest.raises(GpuUnavailableError, match=r"^none$"), unforeseen_in_one_line(LOGGER):
        raise GpuUnavailableError("none")
    assert caplog.records == []
