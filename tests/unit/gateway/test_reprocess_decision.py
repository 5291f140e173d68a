from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from functools import partial

import pytest

from dicom_gateway.errors import RequestError
from dicom_gateway.intake import idempotency_key
from dicom_gateway.interfaces import StudyRun
from dicom_gateway.reprocess_decision import LeftToGateway, MakeRun, ThereAlready, candidates, choose, next_step, queue
from dicom_gateway.reprocess_request import ReprocessRequest
from flows_engine.handoff.matching import match
from flows_engine.handoff.study_store import Fingerprint, TagColumn
from tests.factories import study_record
from tests.fakes.definitions import flow

STUDY = "0193e4c2-7a54-7cc3-98c4-dc0c0c07398f"
ASKED = ReprocessRequest(study=STUDY)
DEFINITION = flow("A", {"Modality": "CT"})
CHANGED = flow("A", {"Modality": "MR"})
FIRST_KEY = idempotency_key(STUDY, DEFINITION)
CT = partial(
    match, study_record(Fingerprint(instance_count=2, columns={"00080060": TagColumn(values=(("CT",),), index=(0, 0))}))
)


def run(run_id: str = "r1", *, minute: int = 0, **values: object) -> StudyRun:
    """Return a run that is over, made by nobody's request, unless ``values`` say otherwise."""
    known = StudyRun(
        run_id=run_id,
        flow="A",
        digest=DEFINITION.digest,
        state="Completed",
        is_over=True,
        created_at=datetime(2024, 5, 6, tzinfo=UTC) + timedelta(minutes=minute),
        request_ids=frozenset(),
        was_withdrawn=False,
    )
    return replace(known, **values)


def step(*runs: StudyRun, definition=DEFINITION, pending: frozenset[str] = frozenset(), request_id: str = "mine"):
    return next_step(STUDY, definition, request_id=request_id, runs=runs, pending_keys=pending)


def test_all_definitions_are_candidates_or_the_one_that_is_named():
    definitions = {"A": DEFINITION, "B": flow("B")}
    assert candidates(definitions, "") == (DEFINITION, definitions["B"])
    assert candidates(definitions, "B") == (definitions["B"],)


def test_a_flow_that_is_not_there_is_told_with_one_that_was_meant():
    definitions = {"Thorax": DEFINITION, "Head": DEFINITION}
    with pytest.raises(RequestError, match=r"there is no flow 'Torax' \(did you mean Thorax\?\)"):
        candidates(definitions, "Torax")
    with pytest.raises(RequestError, match=r"there is no flow 'xyz' \(there are Thorax, Head\)"):
        candidates(definitions, "xyz")


def test_a_site_without_definitions_is_told_so():
    with pytest.raises(RequestError, match="no flow definition is in force"):
        candidates({}, "A")


def test_flows_run_that_match_now_and_the_others_say_why_not():
    chosen = choose(CT, [DEFINITION, flow("B", {"Modality": "MR"}), flow("OnRequest")], ASKED)

    assert chosen.run == (DEFINITION,)
    assert [finding.verdict for finding in chosen.others] == ["not-matched", "on-request"]


def test_a_flow_that_is_named_runs_whether_it_matches_or_not():
    assert choose(CT, [CHANGED], replace(ASKED, flow="A")).run == (CHANGED,)
    assert choose(CT, [flow("OnRequest")], replace(ASKED, flow="OnRequest")).run != ()


def test_a_flow_that_is_named_runs_only_where_it_matches_if_that_is_asked_for():
    only = replace(ASKED, flow="A", only_matching=True)
    assert choose(CT, [CHANGED], only).run == ()
    assert choose(CT, [flow("A", {"Sender.AETitle": "PACS"})], only).run != ()
    assert choose(CT, [DEFINITION], only).run == (DEFINITION,)


def test_a_study_that_never_ran_gets_the_run_that_the_gateway_itself_would_make():
    assert step() == MakeRun(idempotency_key=FIRST_KEY)


def test_a_run_that_is_over_is_followed_by_one_that_is_named_after_it():
    assert step(run("r1")) == MakeRun(idempotency_key=f"{FIRST_KEY}:after:r1")


def test_the_newest_run_names_the_next_whatever_their_order():
    runs = (run("r2", minute=2), run("r1", minute=1))
    assert step(*runs) == step(*reversed(runs)) == MakeRun(idempotency_key=f"{FIRST_KEY}:after:r2")


def test_two_requests_at_once_make_one_run():
    assert step(run("r1"), request_id="mine") == step(run("r1"), request_id="another")


def test_a_run_that_is_under_way_is_not_made_again():
    waiting = run("r2", minute=2, is_over=False, state="Scheduled")
    assert step(run("r1"), waiting) == ThereAlready(run=waiting, by_this_request=False)


def test_a_run_under_way_counts_though_a_newer_one_of_another_version_is_over():
    waiting = run("r1", minute=1, is_over=False)
    newer = run("r2", minute=2, digest=CHANGED.digest)
    assert step(waiting, newer) == ThereAlready(run=waiting, by_this_request=False)


def test_another_version_of_the_flow_does_not_wait_for_the_old_one():
    waiting = run("r1", is_over=False)
    key = idempotency_key(STUDY, CHANGED)
    assert step(waiting, definition=CHANGED) == MakeRun(idempotency_key=f"{key}:after:r1")


def test_a_run_whose_definition_cannot_be_read_any_more_is_not_waited_for():
    assert step(run("r1", is_over=False, digest="")) == MakeRun(idempotency_key=f"{FIRST_KEY}:after:r1")


def test_a_request_that_begins_anew_finds_the_run_that_it_made():
    own = run("r2", minute=2, request_ids=frozenset({"mine"}))
    assert step(run("r1"), own, run("r3", minute=3)) == ThereAlready(run=own, by_this_request=True)


def test_a_run_that_was_withdrawn_with_its_request_is_made_when_that_is_retried():
    withdrawn = run("r2", minute=2, request_ids=frozenset({"mine"}), was_withdrawn=True)
    assert step(run("r1"), withdrawn) == MakeRun(idempotency_key=f"{FIRST_KEY}:after:r2")


def test_a_run_that_a_person_cancelled_is_not_made_again_by_the_same_request():
    cancelled = run("r2", state="Cancelled", request_ids=frozenset({"mine"}))
    assert step(cancelled) == ThereAlready(run=cancelled, by_this_request=True)


def test_a_history_of_which_all_or_the_newest_was_deleted_is_no_obstacle():
    assert step() == MakeRun(idempotency_key=FIRST_KEY)
    assert step(run("r1")) == MakeRun(idempotency_key=f"{FIRST_KEY}:after:r1")


def test_runs_of_other_flows_do_not_matter():
    assert step(run("r1", flow="B", is_over=False)) == MakeRun(idempotency_key=FIRST_KEY)


def test_a_run_that_the_gateway_is_about_to_make_is_left_to_it():
    old_version = run("r1", digest=CHANGED.digest)
    for known in ((), (old_version,)):
        assert step(*known, pending=frozenset({FIRST_KEY})) == LeftToGateway()


def test_a_run_that_was_moved_and_then_withdrawn_is_made_when_its_request_is_retried():
    moved = run("r2", minute=2, state="Cancelled", request_ids=frozenset({"mine"}))
    successor = run("r3", minute=3, state="Cancelled", request_ids=frozenset({"mine"}), was_withdrawn=True)
    assert step(run("r1"), moved, successor) == MakeRun(idempotency_key=f"{FIRST_KEY}:after:r3")


def test_runs_wait_where_they_were_asked_to_or_behind_everything_in_bulk():
    bulk = ReprocessRequest(until=datetime(2024, 5, 6, tzinfo=UTC))
    assert queue(ASKED) == ""
    assert queue(bulk) == "background"
    assert queue(replace(ASKED, priority=0)) == queue(replace(bulk, priority=0)) == "priority-0"
