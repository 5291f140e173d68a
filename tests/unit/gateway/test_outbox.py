from __future__ import annotations

import sqlite3
import threading
import time

import pytest

from dicom_gateway.errors import TriggerRefusedError, TriggerUnavailableError
from dicom_gateway.ledger import Decision
from dicom_gateway.outbox import LONGEST_WAIT_SECONDS, Outbox, wait_seconds
from tests.fakes.run_trigger import FakeRunTrigger


@pytest.fixture
def trigger():
    return FakeRunTrigger()


@pytest.fixture
def outbox(ledger, trigger):
    outbox = Outbox(ledger, trigger)
    outbox.start()
    yield outbox
    outbox.stop()


@pytest.fixture
def ask(ledger, make_record, make_request):
    """Enter a study whose decision asks for runs of these flows, and return its id."""

    def enter(*names, number="0001"):
        record = make_record(number)
        ledger.add(record)
        requests = tuple(make_request(record.study_id, name) for name in names)
        ledger.decide(record.study_id, Decision(outcome="triggered", reason="", requests=requests))
        return record.study_id

    return enter


def wait_until(condition, *, seconds=10.0):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.005)


def states(ledger, study_id):
    return [run.state for run in ledger.study(study_id).runs]


def test_waits_double_up_to_half_a_minute():
    assert [wait_seconds(attempts) for attempts in (0, 1, 2, 6, 1000)] == [
        0.5,
        1.0,
        2.0,
        LONGEST_WAIT_SECONDS,
        LONGEST_WAIT_SECONDS,
    ]


def test_a_new_run_is_created_at_once(ledger, trigger, outbox, ask):
    study_id = ask("A", "B")
    outbox.wake()
    wait_until(lambda: states(ledger, study_id) == ["created", "created"], seconds=3)
    assert len(trigger.calls) == 2
    assert {run.flow_run_id for run in ledger.study(study_id).runs} == set(trigger.runs.values())


def test_what_an_earlier_gateway_left_is_created(ledger, trigger, ask):
    study_id = ask("A")
    outbox = Outbox(ledger, trigger)
    outbox.start()
    wait_until(lambda: states(ledger, study_id) == ["created"])
    outbox.stop()


def test_prefect_away_delays_and_loses_nothing(ledger, trigger, outbox, ask):
    trigger.fail_next(TriggerUnavailableError("connection refused"), TriggerUnavailableError("503"))
    study_id = ask("A")
    outbox.wake()
    wait_until(lambda: states(ledger, study_id) == ["created"])
    assert len(trigger.calls) == 3
    assert len(set(trigger.calls)) == 1
    assert ledger.study(study_id).outcome == "triggered"


def test_an_error_nobody_foresaw_is_tried_again(ledger, trigger, outbox, ask):
    trigger.fail_next(ValueError("boom"))
    study_id = ask("A")
    outbox.wake()
    wait_until(lambda: ledger.study(study_id).runs[0].last_error == "creating the run failed with ValueError")
    wait_until(lambda: states(ledger, study_id) == ["created"])


def test_a_refusal_holds_the_study_and_stops_no_other(ledger, trigger, outbox, ask):
    trigger.fail_next(TriggerRefusedError("422: schema"))
    refused = ask("A")
    outbox.wake()
    wait_until(lambda: states(ledger, refused) == ["refused"])
    other = ask("A", number="0002")
    outbox.wake()
    wait_until(lambda: states(ledger, other) == ["created"])
    assert ledger.study(refused).reason == "A: 422: schema"
    assert len(trigger.calls) == 2


def test_a_request_of_another_version_is_held_and_stops_no_other(ledger, trigger, outbox, ask, tmp_path):
    stale = ask("A")
    with sqlite3.connect(tmp_path / "ledger.sqlite") as connection:
        connection.execute("UPDATE runs SET request = '{\"study\": 1}'")
    other = ask("A", number="0002")
    outbox.wake()
    wait_until(lambda: states(ledger, other) == ["created"])
    wait_until(lambda: ledger.study(stale).outcome == "held")


def test_an_entry_that_fails_asks_again_under_the_same_key(ledger, trigger, outbox, ask, monkeypatch):
    real, failed = ledger.created, []

    def fail_once(key, *, flow_run_id):
        if not failed:
            failed.append(key)
            raise sqlite3.OperationalError("disk I/O error")
        real(key, flow_run_id=flow_run_id)

    monkeypatch.setattr(ledger, "created", fail_once)
    study_id = ask("A")
    outbox.wake()
    wait_until(lambda: states(ledger, study_id) == ["created"])
    assert len(trigger.calls) == 2
    assert len(trigger.runs) == 1


def test_several_runs_are_created_at_once_and_none_twice(ledger, ask):
    class Slow(FakeRunTrigger):
        def __init__(self):
            super().__init__()
            self.inside, self.most, self.together = 0, 0, threading.Barrier(4)

        def trigger(self, request, *, idempotency_key):
            self.together.wait(timeout=5)
            return super().trigger(request, idempotency_key=idempotency_key)

    slow = Slow()
    study_id = ask("A", "B", "C", "D")
    outbox = Outbox(ledger, slow)
    outbox.start()
    for _ in range(20):
        outbox.wake()
    wait_until(lambda: states(ledger, study_id) == ["created"] * 4)
    outbox.stop()
    assert len(slow.calls) == 4


def test_stopping_waits_for_the_run_at_hand(ledger, ask):
    class Held(FakeRunTrigger):
        inside, go_on = threading.Event(), threading.Event()

        def trigger(self, request, *, idempotency_key):
            self.inside.set()
            assert self.go_on.wait(timeout=5)
            return super().trigger(request, idempotency_key=idempotency_key)

    held = Held()
    study_id = ask("A")
    outbox = Outbox(ledger, held)
    outbox.start()
    assert held.inside.wait(timeout=5)
    stopper = threading.Thread(target=outbox.stop)
    stopper.start()
    held.go_on.set()
    stopper.join(timeout=5)
    assert states(ledger, study_id) == ["created"]
