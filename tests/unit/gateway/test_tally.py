from __future__ import annotations

import threading

import pytest
from pydantic import ValidationError

from dicom_gateway.tally import LATENCY_BOUNDS_SECONDS, Counts, Tally


def test_what_is_counted_is_taken_once():
    tally = Tally()
    tally.accepted()
    tally.refused("handshake")
    tally.answered(0x0000, 500, 0.0002)
    counts = tally.take()
    assert counts == Counts(
        accepted=1,
        refused={"handshake": 1},
        answers={"stored": 1},
        bytes_stored=500,
        latencies=(0, 1, *[0] * (len(LATENCY_BOUNDS_SECONDS) - 1)),
        seconds=0.0002,
    )
    assert tally.take() is None


@pytest.mark.parametrize(
    ("status", "answer"),
    [
        (0x0000, "stored"),
        (0xA700, "out-of-resources"),
        (0xA900, "does-not-match"),
        (0xC000, "cannot-understand"),
        (0xCFFF, "cannot-understand"),
        (0x0110, "failure"),
    ],
)
def test_a_status_is_counted_by_its_class_and_a_refused_instance_stores_no_bytes(status, answer):
    tally = Tally()
    tally.answered(status, 7)
    counts = tally.counts()
    assert counts.answers == {answer: 1}
    assert counts.bytes_stored == (7 if answer == "stored" else 0)
    assert sum(counts.latencies) == 0


def test_a_latency_on_a_bound_is_below_it_and_one_beyond_them_all_is_counted():
    tally = Tally()
    tally.answered(0, 1, LATENCY_BOUNDS_SECONDS[0])
    tally.answered(0, 1, 1000.0)
    assert (tally.counts().latencies[0], tally.counts().latencies[-1]) == (1, 1)


def test_sums_are_the_sum_of_what_several_processes_counted():
    total = Tally()
    for _ in range(2):
        part = Tally()
        part.accepted()
        part.refused("negotiation")
        part.answered(0, 10, 0.5)
        part.answered(0xA700, 10, 0.5)
        total.add(Counts.model_validate(part.take().model_dump(mode="json")))
    counts = total.counts()
    assert (counts.accepted, counts.refused, counts.bytes_stored, counts.seconds) == (2, {"negotiation": 2}, 20, 2.0)
    assert counts.answers == {"stored": 2, "out-of-resources": 2}
    assert sum(counts.latencies) == 4


@pytest.mark.parametrize(
    "values",
    [
        {"accepted": -1},
        {"refused": {"CANARY^PATIENT": 1}},
        {"latencies": [1]},
        {"seconds": float("nan")},
        {"more": 1},
        None,
    ],
)
def test_counts_of_another_process_are_not_believed_unseen(values):
    with pytest.raises(ValidationError) as caught:
        Counts.model_validate(values)
    assert "'CANARY" not in str(caught.value)


def test_several_threads_lose_no_count():
    tally = Tally()

    def count():
        for _ in range(2000):
            tally.answered(0, 1, 0.1)

    threads = [threading.Thread(target=count) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert tally.counts().answers == {"stored": 8000}
