from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dicom_gateway.completeness import GroupState, Waiting, closes_at

WAITING = Waiting(idle_seconds=30, incomplete_seconds=300)


@pytest.mark.parametrize(
    ("is_complete", "is_fed", "now", "expected"),
    [
        (True, False, 1000, 1030),
        (True, False, 1029, 1030),
        (False, False, 1000, 1300),
        (True, True, 5000, 5030),
        (False, True, 5000, 5030),
    ],
)
def test_a_group_closes_after_silence_and_never_while_it_is_fed(is_complete, is_fed, now, expected):
    state = GroupState(last_data_at=1000, is_complete=is_complete, is_fed=is_fed)
    assert closes_at(state, WAITING, now=now) == expected


def test_a_clock_that_was_set_back_keeps_nothing_open_for_ever():
    state = GroupState(last_data_at=10_000, is_complete=True, is_fed=False)
    assert closes_at(state, WAITING, now=1000) == 1030


@given(st.floats(0, 1e10), st.floats(0, 1e10), st.booleans(), st.floats(0, 1e5), st.floats(0, 1e5))
def test_what_is_fed_is_never_closed(last, now, is_complete, idle, incomplete):
    state = GroupState(last_data_at=last, is_complete=is_complete, is_fed=True)
    assert closes_at(state, Waiting(idle_seconds=idle, incomplete_seconds=incomplete), now=now) > now
