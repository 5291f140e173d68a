from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from deployments.ages import age, age_seconds

NOW = datetime(2024, 5, 6, 7, 8, 9, tzinfo=UTC)


@pytest.mark.parametrize(
    ("seconds", "told"),
    [
        (0, "0 s"),
        (119, "119 s"),
        (120, "2 min"),
        (7_199, "119 min"),
        (7_200, "2 h"),
        (172_799, "47 h"),
        (172_800, "2 d"),
        (86_400 * 400, "400 d"),
    ],
)
def test_an_age_is_told_in_its_largest_unit(seconds: int, told: str):
    assert age(seconds) == told


def test_an_age_counts_whole_seconds_and_is_never_negative():
    assert age_seconds(NOW - timedelta(seconds=3.9), now=NOW) == 3
    assert age_seconds(NOW + timedelta(seconds=5), now=NOW) == 0
