from __future__ import annotations

import sqlite3
import threading
from contextlib import closing
from datetime import UTC, datetime, timedelta, timezone

import pytest

from dicom_gateway.errors import StudyNotHeldError
from dicom_gateway.ledger import EVERY_FLOW, Decision, Ledger, ReprocessedRun

NOW = datetime(2024, 5, 6, 7, 8, 9, tzinfo=UTC)


def triggered(*requests):
    return Decision(outcome="triggered", reason="matched", explanation="A: matches", requests=requests)


def due(ledger, now=1000.0, **exceptions):
    """Return all runs that are due, in the order in which they are handed out."""
    found = []
    while run := ledger.next_due(
        now=now, horizon_seconds=30, except_keys=[entry.idempotency_key for entry in found], **exceptions
    ):
        found.append(run)
    return tuple(found)


def test_a_study_is_entered_once(ledger, make_record):
    record = make_record()
    assert not ledger.has(record.study_id)
    assert ledger.add(record)
    assert not ledger.add(record)
    assert ledger.has(record.study_id)
    assert ledger.undecided() == ((record.study_id, False),)


def test_a_decision_and_its_runs_are_seen_together(ledger, make_record, make_request):
    record = make_record()
    ledger.add(record)
    ledger.decide(record.study_id, triggered(make_request(record.study_id, "A"), make_request(record.study_id, "B")))
    study = ledger.study(record.study_id)
    assert (study.outcome, study.reason, study.explanation) == ("triggered", "matched", "A: matches")
    assert (study.received_at, study.sender, study.instance_count) == (record.received_at, "PACS@10.0.0.1", 3)
    assert [(run.flow, run.state) for run in study.runs] == [("A", "pending"), ("B", "pending")]
    assert ledger.undecided() == ()


def test_a_decision_that_cannot_be_written_whole_is_not_written(ledger, make_record, make_request):
    first, second = make_record("0001"), make_record("0002")
    ledger.add(first)
    ledger.add(second)
    ledger.decide(first.study_id, triggered(make_request(first.study_id, key="the-same")))
    with pytest.raises(sqlite3.IntegrityError):
        ledger.decide(second.study_id, triggered(make_request(second.study_id, key="the-same")))
    assert ledger.study(second.study_id).outcome == "received"
    assert ledger.study(second.study_id).runs == ()


def test_a_decided_study_is_left_alone(ledger, make_record, make_request):
    record = make_record()
    ledger.add(record)
    ledger.decide(record.study_id, Decision(outcome="no-match", reason="none"))
    ledger.decide(record.study_id, triggered(make_request(record.study_id)))
    assert ledger.study(record.study_id).outcome == "no-match"
    assert due(ledger) == ()


def test_created_runs_are_not_due(ledger, make_record, make_request):
    record = make_record()
    ledger.add(record)
    ledger.decide(record.study_id, triggered(make_request(record.study_id)))
    (run,) = due(ledger)
    ledger.created(run.idempotency_key, flow_run_id="run-1")
    assert due(ledger) == ()
    (entry,) = ledger.study(record.study_id).runs
    assert (entry.state, entry.flow_run_id, entry.attempts) == ("created", "run-1", 1)


def test_a_postponed_run_is_due_when_its_time_comes(ledger, make_record, make_request):
    record = make_record()
    ledger.add(record)
    ledger.decide(record.study_id, triggered(make_request(record.study_id)))
    (run,) = due(ledger)
    ledger.postpone(run.idempotency_key, error="no\nanswer", next_attempt_at=1005.0)
    assert due(ledger, now=1004.0) == ()
    assert ledger.next_due_at(now=1004.0) == 1005.0
    (again,) = due(ledger, now=1005.0)
    assert again.attempts == 1
    assert ledger.study(record.study_id).runs[0].last_error == "no answer"


def test_a_clock_that_was_set_back_delays_nothing(ledger, make_record, make_request):
    record = make_record()
    ledger.add(record)
    ledger.decide(record.study_id, triggered(make_request(record.study_id)))
    ledger.postpone(due(ledger)[0].idempotency_key, error="x", next_attempt_at=9_999_999.0)
    assert len(due(ledger, now=1000.0)) == 1


def test_runs_are_handed_out_oldest_first_but_for_flows_that_have_to_wait(ledger, make_record, make_request):
    for number in ("0003", "0001", "0002"):
        record = make_record(number)
        ledger.add(record)
        ledger.decide(
            record.study_id, triggered(make_request(record.study_id, "B"), make_request(record.study_id, "A"))
        )
    assert [(run.study_id[-4:], run.flow) for run in due(ledger)] == [
        (number, flow) for number in ("0001", "0002", "0003") for flow in "AB"
    ]
    assert [run.study_id[-4:] for run in due(ledger, except_flows=["A", "gone"])] == ["0001", "0002", "0003"]


def test_what_is_urgent_is_handed_out_before_what_has_waited_longer(ledger, make_record, make_request):
    for number, priorities in (("0001", {"A": 0, "B": 3}), ("0002", {"B": 3, "C": 5}), ("0003", {"A": 0, "C": 5})):
        record = make_record(number)
        ledger.add(record)
        requests = [make_request(record.study_id, name, priority=priority) for name, priority in priorities.items()]
        ledger.decide(record.study_id, triggered(*requests))
    assert [(run.study_id[-4:], run.flow) for run in due(ledger)] == [
        *(("0002", "C"), ("0003", "C")),
        *(("0001", "B"), ("0002", "B")),
        *(("0001", "A"), ("0003", "A")),
    ]


def test_a_request_of_another_version_is_the_last_in_line(ledger, make_record, make_request, tmp_path):
    for number, name in (("0001", "A"), ("0002", "B")):
        record = make_record(number)
        ledger.add(record)
        ledger.decide(record.study_id, triggered(make_request(record.study_id, name)))
    with sqlite3.connect(tmp_path / "ledger.sqlite") as connection:
        connection.execute("UPDATE runs SET request = '{\"study\": 1}' WHERE flow = 'A'")
    assert [run.flow for run in due(ledger)] == ["B", "A"]


def test_a_ledger_of_an_earlier_version_is_taken_over(make_record, make_request, tmp_path):
    record = make_record()
    with closing(Ledger(tmp_path / "earlier.sqlite")) as ledger:
        ledger.add(record)
        ledger.decide(record.study_id, triggered(make_request(record.study_id)))
    with closing(sqlite3.connect(tmp_path / "earlier.sqlite")) as connection:
        connection.executescript(
            "DROP INDEX runs_by_priority;"
            "CREATE INDEX runs_in_line ON runs (study_id, flow, next_attempt_at) WHERE state = 'pending';"
        )
    with closing(Ledger(tmp_path / "earlier.sqlite")) as ledger:
        assert [run.study_id for run in due(ledger)] == [record.study_id]


def test_the_next_run_is_found_without_looking_at_all_that_wait(ledger):
    plans = []
    ledger._connection.set_trace_callback(plans.append)
    ledger.next_due(now=1000.0, horizon_seconds=30, except_keys=["key"], except_flows=["A"])
    ledger.next_due_at(now=1000.0)
    ledger._connection.set_trace_callback(None)
    for statement, index in zip(plans, ("runs_by_priority", "runs_by_next_attempt"), strict=True):
        steps = [row["detail"] for row in ledger._read(f"EXPLAIN QUERY PLAN {statement}")]
        assert index in steps[0]
        assert not any("ORDER BY" in step for step in steps)


def test_why_nothing_goes_on_is_told_of_every_run_that_waits(tmp_path, ledger, make_record, make_request):
    record = make_record()
    ledger.add(record)
    ledger.decide(record.study_id, triggered(*(make_request(record.study_id, name) for name in "ABC")))
    ledger.created(due(ledger)[0].idempotency_key, flow_run_id="run-1")
    ledger.note_delay("B", reason="no deployment\nyet")
    reader = Ledger(tmp_path / "ledger.sqlite")

    def told():
        return [run.last_error for run in reader.study(record.study_id).runs]

    assert told() == ["", "no deployment yet", ""]
    ledger.note_delay(EVERY_FLOW, reason="no answer")
    assert told() == ["", "no answer", "no answer"]
    ledger.forget_delays(EVERY_FLOW)
    assert told() == ["", "no deployment yet", ""]
    ledger.note_delay("C", reason="500")
    ledger.forget_delays()
    assert told() == ["", "", ""]
    reader.close()


def test_what_is_refused_for_a_flow_holds_the_studies_that_still_wait_for_it(ledger, make_record, make_request):
    records = [make_record(f"000{number}") for number in range(3)]
    for record in records:
        ledger.add(record)
        ledger.decide(
            record.study_id, triggered(make_request(record.study_id, "A"), make_request(record.study_id, "B"))
        )
    ledger.created(due(ledger)[0].idempotency_key, flow_run_id="run-1")

    assert ledger.refuse_all("A", error="gone\nfor good") == 2

    states = {study.study_id: [run.state for run in study.runs] for study in ledger.studies()}
    assert [states[record.study_id] for record in records] == [["created", "pending"]] + [["refused", "pending"]] * 2
    outcomes = [(study.outcome, study.reason) for study in ledger.studies()]
    assert outcomes == [("held", "A: gone for good")] * 2 + [("triggered", "matched")]
    ledger.release(records[1].study_id)
    assert ledger.undecided() == ((records[1].study_id, True),)


def test_a_refused_run_holds_its_study_with_the_reason(ledger, make_record, make_request):
    record = make_record()
    ledger.add(record)
    ledger.decide(record.study_id, triggered(make_request(record.study_id)))
    ledger.refused(due(ledger)[0], error="422: no such parameter")
    study = ledger.study(record.study_id)
    assert (study.outcome, study.reason) == ("held", "A: 422: no such parameter")
    assert due(ledger) == ()


def test_release_asks_again_for_what_was_refused_and_for_nothing_else(ledger, make_record, make_request):
    record = make_record()
    ledger.add(record)
    ledger.decide(record.study_id, triggered(make_request(record.study_id, "A"), make_request(record.study_id, "B")))
    first, second = due(ledger)
    ledger.created(first.idempotency_key, flow_run_id="run-1")
    ledger.refused(second, error="422")
    ledger.release(record.study_id)
    assert ledger.undecided() == ((record.study_id, True),)
    newer = [make_request(record.study_id, name, key=f"{record.study_id}:{name}:newer") for name in ("A", "B")]
    ledger.decide(record.study_id, triggered(*newer))
    assert [(run.flow, run.idempotency_key) for run in due(ledger)] == [("B", f"{record.study_id}:B:newer")]
    assert ledger.study(record.study_id).runs[0].flow_run_id == "run-1"


@pytest.mark.parametrize("outcome", ["received", "triggered", None])
def test_only_a_held_study_can_be_released(ledger, make_record, outcome):
    record = make_record()
    if outcome is not None:
        ledger.add(record)
    if outcome not in (None, "received"):
        ledger.decide(record.study_id, Decision(outcome=outcome, reason=""))
    with pytest.raises(StudyNotHeldError, match=record.study_id):
        ledger.release(record.study_id)


def test_a_study_that_matched_nothing_can_be_decided_again(ledger, make_record):
    record = make_record()
    ledger.add(record)
    ledger.decide(record.study_id, Decision(outcome="no-match", reason="none"))
    ledger.release(record.study_id)
    assert ledger.undecided() == ((record.study_id, True),)


def test_a_study_is_entered_as_it_was_announced_first(ledger, make_record):
    record = make_record()
    ledger.announce(record.study_id, held_because="damaged")
    ledger.announce(record.study_id)
    assert ledger.is_announced(record.study_id)
    assert ledger.add(record)
    assert not ledger.is_announced(record.study_id)
    assert (ledger.study(record.study_id).outcome, ledger.study(record.study_id).reason) == ("held", "damaged")


def test_a_study_of_which_only_the_id_is_known_is_held(ledger, make_record):
    study_id = make_record().study_id
    ledger.announce(study_id)
    assert ledger.add_unreadable(study_id, reason="its record is damaged")
    study = ledger.study(study_id)
    assert (study.outcome, study.reason, study.instance_count) == ("held", "its record is damaged", 0)


def test_an_error_that_sqlite_rolled_back_itself_is_the_one_that_is_seen(ledger, make_record):
    def fail():
        with ledger._transaction() as connection:
            connection.execute("ROLLBACK")
            raise ValueError("the cause")

    with pytest.raises(ValueError, match="the cause"):
        fail()
    assert ledger.add(make_record())


def test_a_commit_that_fails_leaves_the_ledger_usable(ledger, make_record):
    def fail():
        with ledger._transaction() as connection:
            connection.execute("PRAGMA defer_foreign_keys = ON")
            connection.execute("INSERT INTO runs (study_id, flow, request, idempotency_key) VALUES ('x', '', '', '')")

    with pytest.raises(sqlite3.IntegrityError):
        fail()
    assert ledger.add(make_record())
    assert due(ledger) == ()


def test_studies_come_newest_first(ledger, make_record):
    for number in ("0002", "0003", "0001"):
        ledger.add(make_record(number))
    assert [study.study_id[-4:] for study in ledger.studies(limit=2)] == ["0003", "0002"]
    assert ledger.study("unknown") is None


def test_two_processes_and_their_threads_may_write_at_once(tmp_path, make_record):
    ledgers = [Ledger(tmp_path / "ledger.sqlite") for _ in range(2)]
    records = [make_record(f"{number:04d}") for number in range(40)]

    def enter(ledger, part):
        for record in part:
            ledger.add(record)
            ledger.decide(record.study_id, Decision(outcome="held", reason="x"))

    threads = [threading.Thread(target=enter, args=(ledgers[n % 2], records[n::4])) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert {study.outcome for study in ledgers[0].studies()} == {"held"}
    assert len(ledgers[1].studies()) == 40
    for ledger in ledgers:
        ledger.close()


def test_what_was_written_is_there_after_a_restart(tmp_path, make_record):
    ledger = Ledger(tmp_path / "l.sqlite")
    ledger.add(make_record())
    ledger.close()
    again = Ledger(tmp_path / "l.sqlite")
    assert len(again.undecided()) == 1
    again.close()


def test_studies_of_a_span_come_with_their_outcome_however_many_are_read_at_once(ledger, make_record, monkeypatch):
    monkeypatch.setattr("dicom_gateway.ledger._PAGE", 2)
    records = [make_record(f"{number:04d}") for number in range(5)]
    for hour, record in enumerate(records):
        ledger.add(record.model_copy(update={"received_at": NOW + timedelta(hours=hour)}))
    ledger.decide(records[2].study_id, Decision(outcome="no-match", reason="none"))
    span = {"since": NOW + timedelta(hours=1), "until": NOW + timedelta(hours=4)}

    found = list(ledger.received(**span))

    assert [study.study_id for study in found] == [record.study_id for record in records[1:4]]
    assert [study.outcome for study in found] == ["received", "no-match", "received"]
    assert ledger.count_received(**span) == 3


def test_a_span_may_be_open_on_either_side(ledger, make_record):
    for hour in range(3):
        ledger.add(make_record(f"{hour:04d}").model_copy(update={"received_at": NOW + timedelta(hours=hour)}))

    assert ledger.count_received(since=NOW + timedelta(hours=1), until=None) == 2
    assert ledger.count_received(since=None, until=NOW + timedelta(hours=1)) == 1
    assert ledger.count_received(since=None, until=None) == 3


def test_a_span_is_the_same_moment_in_every_time_zone(ledger, make_record):
    ledger.add(make_record())
    two_hours_east = timezone(timedelta(hours=2))

    assert ledger.count_received(since=NOW.astimezone(two_hours_east), until=None) == 1
    assert ledger.count_received(since=None, until=NOW.astimezone(two_hours_east)) == 0


def test_a_run_that_a_person_asked_for_is_kept_with_its_study_once(ledger, make_record):
    study_id = make_record().study_id
    ledger.add(make_record())
    runs = [ReprocessedRun(flow=flow, flow_run_id=f"run-{flow}", request_id="request") for flow in ("B", "A")]

    for run in (*runs, *runs):
        ledger.reprocessed(run, study_id=study_id)

    assert ledger.study(study_id).reprocessed == tuple(runs)


def test_a_study_is_found_by_each_of_its_uids_the_newest_reception_first(ledger, make_record):
    for number, uids in (("0001", {"h1"}), ("0002", {"h1", "h2"}), ("0003", {"h3"})):
        ledger.add(make_record(number), uid_hashes=uids)

    assert [study_id[-4:] for study_id in ledger.studies_of("h1")] == ["0002", "0001"]
    assert [study_id[-4:] for study_id in ledger.studies_of("h2")] == ["0002"]
    assert ledger.studies_of("unknown") == ()


def test_studies_of_an_older_ledger_are_without_uids_until_those_are_entered(ledger, make_record):
    ledger.add(make_record("0001"))
    ledger.add(make_record("0002"))
    ledger.add(make_record("0003"), uid_hashes=())
    ledger.add_unreadable(make_record("0004").study_id, reason="damaged")

    assert [study_id[-4:] for study_id in ledger.without_uids()] == ["0002", "0001"]
    ledger.enter_uids(make_record("0001").study_id, {"h1"})
    ledger.enter_uids(make_record("0002").study_id, ())
    assert ledger.without_uids() == ()
    assert ledger.studies_of("h1") == (make_record("0001").study_id,)


def test_hashes_of_another_key_are_forgotten_and_those_of_the_same_one_kept(ledger, make_record):
    ledger.use_uid_key("one")
    ledger.add(make_record(), uid_hashes={"h1"})

    ledger.use_uid_key("one")
    assert ledger.studies_of("h1") == (make_record().study_id,)

    ledger.use_uid_key("another")
    assert ledger.studies_of("h1") == ()
    assert ledger.without_uids() == (make_record().study_id,)
