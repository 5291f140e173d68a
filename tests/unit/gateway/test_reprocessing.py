"""One request carried out, on a real store and a real ledger; Prefect is in memory."""

from __future__ import annotations

import logging
import shutil
from dataclasses import dataclass, field
from datetime import timedelta

import pytest

from dicom_gateway.errors import RequestError, TriggerRefusedError, TriggerUnavailableError
from dicom_gateway.intake import idempotency_key
from dicom_gateway.ledger import Decision, Ledger
from dicom_gateway.reprocess_request import ReprocessRequest
from dicom_gateway.reprocessing import Reprocessing
from dicom_gateway.uid_key import UidKey
from flows_engine.handoff.study_store import StudyStore
from tests.factories import leaked_canaries
from tests.fakes.definitions import flow
from tests.fakes.run_history import FakeRunHistory
from tests.fakes.run_trigger import FakeRunTrigger

KEY = UidKey(b"key")
CT_FLOW = flow("A", {"Modality": "CT"})
MR_FLOW = flow("B", {"Modality": "MR"})


@dataclass
class Site:
    """Studies in store and ledger. ``pauses`` are all that were waited for; ``while_pausing`` is what happens then."""

    store: StudyStore
    ledger: Ledger
    definitions: dict = field(default_factory=lambda: {"A": CT_FLOW, "B": MR_FLOW})
    pauses: list[float] = field(default_factory=list)

    def __post_init__(self):
        self.trigger = FakeRunTrigger()
        self.history = FakeRunHistory(self.trigger)
        self.while_pausing = lambda: None

    def reprocessing(self, request, *, request_id="request", most_waiting=200):
        def pause(seconds):
            self.pauses.append(seconds)
            assert len(self.pauses) < 1000, "it waits for ever"
            self.while_pausing()

        return Reprocessing(
            request,
            request_id=request_id,
            definitions=self.definitions,
            store=self.store,
            ledger=self.ledger,
            uid_key=KEY,
            history=self.history,
            trigger=self.trigger,
            logger=logging.getLogger("request"),
            pause=pause,
            most_waiting=most_waiting,
        )

    def ask(self, request_id="request", **request):
        return self.reprocessing(ReprocessRequest(**request), request_id=request_id).carry_out()

    def runs(self):
        """Return the runs by study and flow, in the order in which they were made."""
        return [
            (self.trigger.requests[key].study_id, self.trigger.requests[key].definition.name, run)
            for key, run in self.trigger.runs.items()
        ]


@pytest.fixture
def site(tmp_path, ledger):
    return Site(StudyStore(tmp_path / "studies"), ledger)


@pytest.fixture
def receive(site, make_record):
    """Return a maker of received studies: it gives their ids."""

    def make(number="0001", *, modality="CT", outcome="triggered", uids=(), hour=0):
        record = make_record(number, modality=modality, complete=outcome != "held")
        record = record.model_copy(update={"received_at": record.received_at + timedelta(hours=hour)})
        folder = site.store.folder(record.study_id)
        (folder / "input").mkdir(parents=True)
        (folder / "study.json").write_text(record.model_dump_json())
        site.ledger.add(record, uid_hashes=[KEY.hash_of(uid) for uid in uids])
        if outcome != "received":
            site.ledger.decide(record.study_id, Decision(outcome=outcome, reason="x"))
        return record.study_id

    return make


@pytest.fixture
def span(make_record):
    """The span of time that holds all studies of these tests."""
    return {"since": make_record().received_at, "until": make_record().received_at + timedelta(days=1)}


def test_every_flow_that_matches_now_runs_and_the_run_says_why(site, receive):
    study = receive()

    result = site.ask(study=study, note="model v2")

    ((made, name, run_id),) = site.runs()
    assert (made, name) == (study, "A")
    assert result.message() == f"made A as run {run_id}"
    ((key, request),) = site.trigger.requests.items()
    assert (request.reason, request.note, request.sender.ae_title) == ("reprocess", "model v2", "PACS")
    assert request.study_uri == (site.store.folder(study)).absolute().as_uri()
    assert site.trigger.tags[key] == {"reason:reprocess", "reprocess:request"}
    assert site.trigger.queues[key] == ""


def test_the_ledger_remembers_the_run(site, receive):
    study = receive()
    site.ask(study=study)
    ((_, _, run_id),) = site.runs()
    (kept,) = site.ledger.study(study).reprocessed
    assert (kept.flow, kept.flow_run_id, kept.request_id) == ("A", run_id, "request")


def test_why_other_flows_do_not_run_is_told_for_one_study(site, receive):
    (_, other) = site.ask(study=receive()).table()
    assert (other["flow"], other["what"]) == ("B", "does not match")
    assert other["reason"] == "Modality: none of 3 instances matches 'MR'"


def test_a_flow_that_is_named_runs_whether_it_matches_or_not(site, receive):
    site.ask(study=receive(), flow="B")
    assert [name for _, name, _ in site.runs()] == ["B"]


def test_a_dry_run_makes_nothing_and_asks_prefect_nothing(site, receive):
    site.history.fail_next(AssertionError("Prefect was asked"))
    result = site.ask(study=receive(), dry_run=True)
    assert result.message() == "dry run: A would run"
    assert site.runs() == []


def test_two_requests_at_once_make_one_run(site, receive):
    study = receive()
    both = [site.ask(request_id, study=study) for request_id in ("one", "another")]
    ((_, _, run_id),) = site.runs()
    assert [result.message() for result in both] == [
        f"made A as run {run_id}",
        f"already under way: A as run {run_id}, which is Scheduled",
    ]


def test_a_repeat_after_the_first_is_over_runs_again(site, receive):
    study = receive()
    for number in range(3):
        site.ask(f"request {number}", study=study)
        site.history.over.update(run for _, _, run in site.runs())
    assert len({run for _, _, run in site.runs()}) == 3


def test_a_request_that_begins_anew_makes_no_run_twice(site, receive, span):
    for number in range(3):
        receive(f"{number:04d}")
    first = site.ask(**span)
    site.history.over.update(run for _, _, run in site.runs())
    again = site.ask(**span)
    assert len(site.runs()) == 3
    assert first.message() == again.message() == "3 runs made for 3 of 3 studies"


def test_a_request_that_was_killed_between_prefect_and_the_ledger_goes_on(site, receive, span, monkeypatch):
    studies = [receive(f"{number:04d}") for number in range(3)]

    def killed(*_, **__):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(site.ledger, "reprocessed", killed)
        with pytest.raises(KeyboardInterrupt):
            site.ask(**span)
    assert len(site.runs()) == 1

    site.ask(**span)

    assert [study for study, _, _ in site.runs()] == studies
    assert [len(site.ledger.study(study).reprocessed) for study in studies] == [1, 1, 1]


def test_a_run_that_the_gateway_has_yet_to_create_is_not_doubled(site, receive, make_request):
    study = receive(outcome="received")
    request, _ = make_request(study)
    request = request.model_copy(update={"definition": CT_FLOW})
    key = idempotency_key(study, CT_FLOW)
    site.ledger.decide(study, Decision(outcome="triggered", reason="x", requests=((request, key),)))

    site.ask(study=study)
    site.trigger.trigger(request, idempotency_key=key)

    assert len(site.runs()) == 1


def test_the_newest_reception_of_a_uid_runs_and_the_others_are_named(site, receive):
    studies = [receive(f"{number:04d}", uids=["1.2.3"]) for number in range(3)]
    result = site.ask(study="1.2.3")
    assert [study for study, _, _ in site.runs()] == [studies[2]]
    assert f"this is the newest of 3 receptions; others are {studies[1]}, {studies[0]}" in result.message()


def test_all_receptions_of_a_uid_run_if_that_is_asked_for(site, receive):
    studies = [receive(f"{number:04d}", uids=["1.2.3"]) for number in range(3)]
    result = site.ask(study="1.2.3", receptions="all")
    assert [study for study, _, _ in site.runs()] == studies[::-1]
    assert "receptions" not in result.message()


def test_what_is_not_there_is_refused_before_anything_is_made(site, receive):
    study = receive()
    for request in ({"study": "0193e4c2-7a54"}, {"study": "1.2.3"}, {"study": study, "flow": "C"}):
        with pytest.raises(RequestError):
            site.ask(**request)
    assert site.runs() == []


def test_a_study_whose_files_are_gone_says_so_and_stops_no_other(site, receive, span):
    gone, there = receive("0001"), receive("0002")
    shutil.rmtree(site.store.folder(gone) / "input")
    result = site.ask(**span)
    assert [study for study, _, _ in site.runs()] == [there]
    assert result.message().startswith("1 run made for 1 of 2 studies; not processed: the files of study ")
    assert gone in result.message()
    assert not result.failed
    assert site.ask(study=gone).failed


def test_a_record_that_nobody_can_read_stops_no_other(site, receive, span):
    damaged, there = receive("0001"), receive("0002")
    (site.store.folder(damaged) / "study.json").write_text('{"PatientName": "CANARYSURNAME"}')
    result = site.ask(**span)
    assert [study for study, _, _ in site.runs()] == [there]
    assert leaked_canaries(result.message() + str(result.table())) == []


def test_what_nobody_foresaw_of_one_study_stops_no_other(site, receive, span, monkeypatch):
    broken, there = receive("0001"), receive("0002")
    record = site.store.record
    monkeypatch.setattr(
        site.store,
        "record",
        lambda study: (_ for _ in ()).throw(OSError("CANARYSURNAME")) if study == broken else record(study),
    )
    result = site.ask(**span)
    assert [study for study, _, _ in site.runs()] == [there]
    assert f"study {broken} cannot be processed (OSError)" in result.message()


def test_a_run_that_prefect_refuses_is_told_and_stops_no_other(site, receive, span):
    receive("0001")
    there = receive("0002")
    site.trigger.fail_next(TriggerRefusedError("Prefect refuses the run with HTTP status 422"))
    result = site.ask(**span)
    assert [study for study, _, _ in site.runs()] == [there]
    assert "refused: A (Prefect refuses the run with HTTP status 422)" in result.message()


def test_in_bulk_held_and_undecided_studies_are_passed_over_and_counted(site, receive, span):
    receive("0001", outcome="held")
    receive("0002", outcome="received")
    receive("0003", outcome="no-match", modality="US")
    there = receive("0004")
    result = site.ask(**span)
    assert [study for study, _, _ in site.runs()] == [there]
    assert (result.held, result.not_decided, result.studies) == (1, 1, 2)
    assert "1 study matches no flow" in result.message()


def test_a_held_study_that_is_named_is_not_processed_and_says_what_lets_it_go_on(site, receive):
    held = receive("0001", outcome="held")
    result = site.ask(study=held)
    assert site.runs() == []
    assert result.failed
    assert f"study {held} is held (" in result.message()
    assert f"`dicomflow release {held}` lets it go on" in result.message()


def test_a_span_of_time_takes_what_was_received_in_it(site, receive, span):
    studies = [receive(f"{hour:04d}", hour=hour) for hour in range(4)]
    site.ask(since=span["since"] + timedelta(hours=1), until=span["since"] + timedelta(hours=3))
    assert [study for study, _, _ in site.runs()] == studies[1:3]


def test_in_bulk_runs_wait_in_the_background_unless_a_priority_is_given(site, receive, span):
    receive()
    site.ask(**span)
    site.history.over.update(run for _, _, run in site.runs())
    site.ask("urgent", **span, priority=5)
    assert list(site.trigger.queues.values()) == ["background", "priority-5"]


def test_in_bulk_no_more_runs_wait_than_allowed(site, receive, span):
    for number in range(20):
        receive(f"{number:04d}")
    most = 0

    def one_begins():
        nonlocal most
        most = max(most, site.history.waiting("request"))
        site.history.begun.add(next(run for _, _, run in site.runs() if run not in site.history.begun))

    site.while_pausing = one_begins
    result = site.reprocessing(ReprocessRequest(**span), most_waiting=4).carry_out()
    assert result.made == 20
    assert most == 4
    assert len(site.pauses) == 16


def test_a_request_in_bulk_can_wait_until_all_its_runs_have_begun(site, receive, span):
    for number in range(3):
        receive(f"{number:04d}")
    request = site.reprocessing(ReprocessRequest(**span))
    request.carry_out()
    waiting = [run for _, _, run in site.runs()]
    site.while_pausing = lambda: site.history.begun.add(waiting.pop())
    request.await_begun()
    assert waiting == []


def test_a_prefect_that_is_away_for_a_minute_delays_and_loses_nothing(site, receive, span):
    studies = [receive(f"{number:04d}") for number in range(3)]
    site.trigger.fail_next(*[TriggerUnavailableError("Prefect does not answer")] * 5)
    site.history.fail_next(*[TriggerUnavailableError("Prefect does not answer")] * 3)
    site.ask(**span)
    assert [study for study, _, _ in site.runs()] == studies
    assert sum(site.pauses) == (0.5 + 1 + 2) + (0.5 + 1 + 2 + 4 + 8)


def test_a_prefect_that_stays_away_ends_the_request(site, receive):
    study = receive()
    site.trigger.fail_next(*[TriggerUnavailableError("Prefect does not answer")] * 99)
    with pytest.raises(TriggerUnavailableError):
        site.ask(study=study)
    assert 60 < sum(site.pauses) < 180


def test_a_request_that_is_retried_after_it_was_cancelled_makes_what_was_withdrawn(site, receive, span):
    for number in range(3):
        receive(f"{number:04d}")
    site.ask(**span)
    first = [run for _, _, run in site.runs()]
    site.history.begun.add(first[0])
    assert site.history.withdraw("request") == 2

    site.ask(**span)

    assert [study[-1] for study, _, _ in site.runs()] == ["0", "1", "2", "1", "2"]
