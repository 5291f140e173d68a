from __future__ import annotations

from dicom_gateway.backing_off import LONGEST_WAIT_SECONDS, after_failure, wait_seconds


def test_waits_double_up_to_ten_seconds():
    waits = [wait_seconds(attempts) for attempts in (0, 1, 2, 5, 1000)]
    assert waits == [0.5, 1.0, 2.0, LONGEST_WAIT_SECONDS, LONGEST_WAIT_SECONDS]


def test_after_the_first_failure_another_run_may_try_at_once():
    pause = after_failure(None, reason="x", now=100.0)
    assert not pause.lasts(now=100.0)


def test_pauses_grow_with_each_failure_of_whoever_tried_after_the_last_one():
    pause = after_failure(None, reason="x", now=100.0)
    lengths = []
    for _ in range(7):
        pause = after_failure(pause, reason="x", now=pause.until)
        lengths.append(pause.until - pause.since - sum(lengths))
    assert lengths == [0.5, 1.0, 2.0, 4.0, 8.0, 10.0, 10.0]
    assert pause.since == 100.0


def test_what_was_tried_together_counts_once_and_tells_the_last_reason():
    pause = after_failure(after_failure(None, reason="x", now=100.0), reason="x", now=100.0)
    together = after_failure(pause, reason="y", now=100.4)
    assert (together.until, together.failures, together.reason) == (pause.until, pause.failures, "y")


def test_a_pause_ends_when_its_time_is_over_or_the_clock_is_set_back():
    pause = after_failure(after_failure(None, reason="x", now=100.0), reason="x", now=100.0)
    assert [pause.lasts(now=now) for now in (100.4, 100.5, 0.0)] == [True, False, False]
