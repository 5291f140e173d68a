from __future__ import annotations

import sqlite3
import threading
import time
from itertools import pairwise

import pytest

from dicom_gateway.errors import NotDeployedError, TriggerRefusedError, TriggerUnavailableError
from dicom_gateway.ledger import Decision
from dicom_gateway.outbox import AT_ONCE, GONE_SECONDS, Outbox
from tests.fakes.definitions import FakeDefinitions, flow
from tests.fakes.run_trigger import FakeRunTrigger

NOTHING_DEFINED = FakeDefinitions()


@pytest.fixture
def trigger():
    return FakeRunTrigger()


@pytest.fixture
def outbox(ledger, trigger):
    outbox = Outbox(ledger, trigger, NOTHING_DEFINED)
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


def test_a_new_run_is_created_at_once(ledger, trigger, outbox, ask):
    study_id = ask("A", "B")
    outbox.wake()
    wait_until(lambda: states(ledger, study_id) == ["created", "created"], seconds=3)
    assert len(trigger.calls) == 2
    assert {run.flow_run_id for run in ledger.study(study_id).runs} == set(trigger.runs.values())


def test_what_an_earlier_gateway_left_is_created(ledger, trigger, ask):
    study_id = ask("A")
    outbox = Outbox(ledger, trigger, NOTHING_DEFINED)
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


def test_a_server_that_is_away_is_asked_for_one_run_at_a_time_and_then_for_all_of_them(ledger, ask):
    class Timed(FakeRunTrigger):
        def __init__(self):
            super().__init__()
            self.called_at = []

        def trigger(self, request, *, idempotency_key):
            self.called_at.append(time.monotonic())
            return super().trigger(request, idempotency_key=idempotency_key)

        def longest_gap(self):
            return max((later - earlier for earlier, later in pairwise(self.called_at)), default=0.0)

    trigger = Timed()
    trigger.away = TriggerUnavailableError("connection refused")
    asked = [ask("A", number=f"{number:04d}") for number in range(100)]
    outbox = Outbox(ledger, trigger, NOTHING_DEFINED)
    outbox.start()

    def pauses_have_grown():
        outbox.wake()
        return trigger.longest_gap() > 0.9

    wait_until(pauses_have_grown)
    # As many as go together, one more at once, one after half a second, one after another second.
    assert len(trigger.calls) <= AT_ONCE + 3
    assert {run.last_error for study_id in asked for run in ledger.study(study_id).runs} == {"connection refused"}

    trigger.away = None
    wait_until(lambda: all(states(ledger, study_id) == ["created"] for study_id in asked), seconds=30)
    outbox.stop()
    assert len(trigger.runs) == 100
    assert {run.last_error for study_id in asked for run in ledger.study(study_id).runs} == {""}


def test_a_flow_that_is_not_deployed_holds_up_no_other_however_many_of_its_runs_wait(ledger, trigger, ask):
    trigger.broken_flows["A"] = NotDeployedError("no deployment yet")
    waiting = [ask("A", number=f"{number:04d}") for number in range(100)]
    others = [ask("B", number=f"{number:04d}") for number in range(200, 220)]
    outbox = Outbox(ledger, trigger, NOTHING_DEFINED)
    outbox.start()
    wait_until(lambda: all(states(ledger, study_id) == ["created"] for study_id in others))
    assert sum(":A:" in key for key in trigger.calls) < AT_ONCE + 10
    assert {ledger.study(study_id).runs[0].last_error for study_id in waiting} == {"no deployment yet"}

    trigger.broken_flows.clear()
    wait_until(lambda: all(states(ledger, study_id) == ["created"] for study_id in waiting), seconds=30)
    outbox.stop()
    assert len(trigger.runs) == 120


def test_one_run_that_always_fails_holds_up_no_other(ledger, trigger, ask):
    class Picky(FakeRunTrigger):
        def trigger(self, request, *, idempotency_key):
            if request.study_id.endswith("0000"):
                raise ValueError("boom")
            return super().trigger(request, idempotency_key=idempotency_key)

    failing = ask("A", number="0000")
    others = [ask("A", number=f"{number:04d}") for number in range(1, 50)]
    outbox = Outbox(ledger, Picky(), NOTHING_DEFINED)
    outbox.start()
    wait_until(lambda: all(states(ledger, study_id) == ["created"] for study_id in others))
    outbox.stop()
    assert states(ledger, failing) == ["pending"]
    assert ledger.study(failing).runs[0].last_error == "creating the run failed with ValueError"


def test_runs_are_created_oldest_first(ledger, trigger, ask):
    asked = [ask("A", number=f"{number:04d}") for number in reversed(range(50))]
    outbox = Outbox(ledger, trigger, NOTHING_DEFINED)
    outbox.start()
    wait_until(lambda: len(trigger.runs) == 50)
    outbox.stop()
    places = [sorted(asked).index(key.split(":")[0]) for key in trigger.calls]
    assert max(abs(place - position) for position, place in enumerate(places)) <= AT_ONCE


class Clock:
    def __init__(self):
        self.offset_seconds = 0.0

    def __call__(self):
        return time.time() + self.offset_seconds


@pytest.mark.parametrize("in_force", [False, True])
def test_the_runs_of_a_flow_are_given_up_only_when_its_definition_is_gone_too(ledger, trigger, ask, in_force):
    trigger.broken_flows["A"] = NotDeployedError("no deployment yet")
    studies = [ask("A", "B", number=f"{number:04d}") for number in range(3)]
    clock = Clock()
    definitions = FakeDefinitions(*([flow("A")] if in_force else []))
    outbox = Outbox(ledger, trigger, definitions, clock=clock)
    outbox.start()
    wait_until(lambda: all(states(ledger, study_id) == ["pending", "created"] for study_id in studies))
    assert {ledger.study(study_id).outcome for study_id in studies} == {"triggered"}

    calls = len(trigger.calls)
    clock.offset_seconds = GONE_SECONDS
    outbox.wake()
    wait_until(lambda: len(trigger.calls) > calls)
    outbox.stop()
    outcomes = {(study.outcome, study.runs[0].state) for study in ledger.studies()}
    if in_force:
        assert outcomes == {("triggered", "pending")}
    else:
        assert outcomes == {("held", "refused")}
        assert "A: its definition was removed" in ledger.study(studies[0]).reason


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
    outbox = Outbox(ledger, slow, NOTHING_DEFINED)
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
    outbox = Outbox(ledger, held, NOTHING_DEFINED)
    outbox.start()
    assert held.inside.wait(timeout=5)
    stopper = threading.Thread(target=outbox.stop)
    stopper.start()
    held.go_on.set()
    stopper.join(timeout=5)
    assert states(ledger, study_id) == ["created"]
