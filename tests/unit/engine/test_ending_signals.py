from __future__ import annotations

import pytest

from flows_engine.ending_signals import ending_signals, signal_number


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("15", 15),
        ("SIGTERM", 15),
        ("term", 15),
        ("SIGRTMIN+3", 37),
        ("RTMAX-2", 62),
        ("SIGRTMIN", 34),
        ("", None),
        ("SIGNONE", None),
        ("²", None),
    ],
)
def test_a_signal_is_read_as_engines_write_it(text: str, number: int | None) -> None:
    assert signal_number(text) == number


@pytest.mark.parametrize(
    ("own", "ending"), [(None, {9, 15}), ("", {9, 15}), ("SIGINT", {2, 9, 15}), ("3", {3, 9, 15}), ("no", {9, 15})]
)
def test_a_container_ends_by_two_signals_and_by_its_own(own: str | None, ending: set[int]) -> None:
    assert ending_signals(own) == ending
