from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from dicom_gateway.gathered_calls import GatheredCalls
from tests.services import wait_until


class Calls:
    """What ``make`` was called with. A call waits while ``gate`` is closed."""

    def __init__(self, *, most=16):
        self.made = []
        self.gate = threading.Event()
        self.fails_with = None
        self.gathered = GatheredCalls(self._make, most=most)

    def _make(self, subject, asks):
        self.made.append((subject, list(asks)))
        assert self.gate.wait(timeout=10)
        if self.fails_with is not None:
            raise self.fails_with
        return [f"{subject}{ask}" for ask in asks]


@pytest.fixture
def pool():
    with ThreadPoolExecutor(16) as pool:
        yield pool


def begin(pool, calls, subject, count):
    """Have one call under way, and ``count`` more waiting behind it, in order; return all of them."""
    begun = [pool.submit(calls.gathered.call, subject, 0)]
    wait_until(lambda: (subject, [0]) in calls.made, seconds=10, what="one is under way")
    for number in range(1, count + 1):
        begun.append(pool.submit(calls.gathered.call, subject, number))
        wait_until(
            lambda number=number: len(calls.gathered._waiting.get(subject, ())) == number,
            seconds=10,
            what=f"{number} wait",
        )
    return begun


def test_a_call_with_nobody_else_is_made_at_once_and_alone():
    calls = Calls()
    calls.gate.set()
    assert [calls.gathered.call("a", number) for number in (1, 2)] == ["a1", "a2"]
    assert calls.made == [("a", [1]), ("a", [2])]


def test_what_comes_while_one_is_under_way_is_made_together_first_come_first(pool):
    calls = Calls()
    begun = begin(pool, calls, "a", 5)
    calls.gate.set()
    assert [call.result(timeout=10) for call in begun] == [f"a{number}" for number in range(6)]
    assert calls.made == [("a", [0]), ("a", [1, 2, 3, 4, 5])]


def test_no_more_than_so_many_are_made_together(pool):
    calls = Calls(most=2)
    begun = begin(pool, calls, "a", 5)
    calls.gate.set()
    assert [call.result(timeout=10) for call in begun] == [f"a{number}" for number in range(6)]
    assert calls.made == [("a", [0]), ("a", [1, 2]), ("a", [3, 4]), ("a", [5])]


def test_calls_on_another_subject_do_not_wait(pool):
    calls = Calls()
    begun = begin(pool, calls, "a", 1)
    other = pool.submit(calls.gathered.call, "b", 7)
    wait_until(lambda: ("b", [7]) in calls.made, seconds=10, what="the other is under way")
    calls.gate.set()
    assert other.result(timeout=10) == "b7"
    assert [call.result(timeout=10) for call in begun] == ["a0", "a1"]


def test_a_failure_is_raised_in_all_that_asked_and_the_next_are_made_as_ever(pool):
    calls = Calls()
    begun = begin(pool, calls, "a", 3)
    calls.fails_with = ValueError("away")
    calls.gate.set()
    for call in begun:
        with pytest.raises(ValueError, match="away"):
            call.result(timeout=10)
    calls.fails_with = None
    assert calls.gathered.call("a", 9) == "a9"
    assert calls.made[:2] == [("a", [0]), ("a", [1, 2, 3])]


def test_too_few_answers_are_a_failure_of_those_without(pool):
    gathered = GatheredCalls(lambda _subject, _asks: [], most=2)
    with pytest.raises(ValueError, match="shorter"):
        gathered.call("a", 1)
