from __future__ import annotations

import time
from datetime import UTC, datetime, timedelta

import pytest

from dicom_gateway.moments import read_moment

NOW = datetime(2024, 7, 1, 12, tzinfo=UTC)


@pytest.fixture
def in_berlin(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("TZ", "Europe/Berlin")
    time.tzset()
    yield
    monkeypatch.undo()
    time.tzset()


@pytest.mark.parametrize(
    ("written", "ago"),
    [
        ("90m", timedelta(minutes=90)),
        ("12h", timedelta(hours=12)),
        (" 30d ", timedelta(days=30)),
        ("2 w", timedelta(weeks=2)),
    ],
)
def test_a_length_of_time_is_so_long_ago(written: str, ago: timedelta):
    assert read_moment(written, now=NOW) == NOW - ago


@pytest.mark.parametrize(
    ("written", "moment"),
    [
        ("2024-05-01", datetime(2024, 4, 30, 22, tzinfo=UTC)),
        ("2024-01-01", datetime(2023, 12, 31, 23, tzinfo=UTC)),
        ("2024-05-01T14:30", datetime(2024, 5, 1, 12, 30, tzinfo=UTC)),
        ("2024-05-01 14:30", datetime(2024, 5, 1, 12, 30, tzinfo=UTC)),
    ],
)
@pytest.mark.usefixtures("in_berlin")
def test_what_names_no_zone_is_the_time_of_this_host_in_summer_and_winter(written: str, moment: datetime):
    assert read_moment(written, now=NOW) == moment


@pytest.mark.parametrize("written", ["2024-05-01T14:30+02:00", "2024-05-01T12:30Z", "2024-05-01T12:30:00.000+00:00"])
@pytest.mark.usefixtures("in_berlin")
def test_a_zone_that_is_named_is_kept(written: str):
    assert read_moment(written, now=NOW) == datetime(2024, 5, 1, 12, 30, tzinfo=UTC)


@pytest.mark.parametrize(
    "written", ["", "soon", "30", "30y", "-2d", "2.5h", "01.05.2024", "2024-13-01", "999999w", "0001-01-01"]
)
@pytest.mark.usefixtures("in_berlin")
def test_what_is_no_moment_is_refused_with_the_way_out(written: str):
    with pytest.raises(ValueError, match=r"is no moment; write 12h or 30d \(ago\), or 2024-05-01"):
        read_moment(written, now=NOW)
