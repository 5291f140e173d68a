from __future__ import annotations

import io
from dataclasses import replace
from datetime import UTC, datetime

import pytest
from rich.console import Console

from deployments.study_reports import print_explanation, print_studies
from dicom_gateway.completeness import Waiting
from dicom_gateway.ledger import Decision, ReprocessedRun
from dicom_gateway.open_groups import OpenGroups
from dicom_gateway.spool import Spool
from flows_engine.handoff.run_request import RunRequest, Sender
from flows_engine.handoff.study_store import StudyNotFoundError
from tests.factories import CANARY_SERIES_DESCRIPTION, leaked_canaries
from tests.fakes.definitions import flow
from tests.fakes.instances import ct, received


def printed(print_report, *arguments, **options) -> str:
    text = io.StringIO()
    print_report(Console(file=text, width=40), *arguments, **options)
    return text.getvalue()


def triggered(record, *names):
    requests = tuple(
        (
            RunRequest(
                study_id=record.study_id,
                study_uri="file:///studies",
                sender=record.sender,
                received_at=record.received_at,
                definition=flow(name, {"Modality": "CT"}),
            ),
            f"{record.study_id}:{name}",
        )
        for name in names
    )
    return Decision(outcome="triggered", reason="matched", requests=requests)


def test_a_study_is_one_line_however_narrow_the_terminal(site, ledger, store_study):
    for number in ("0001", "0002"):
        ledger.decide(store_study(number).study_id, Decision(outcome="held", reason="the association was aborted"))

    heading, *lines = printed(print_studies, site, limit=10).splitlines()

    assert heading.split()[:2] == ["study", "received"]
    assert [line.split()[0][-4:] for line in lines] == ["0002", "0001"]
    assert all(line.rstrip().endswith("held     the association was aborted") for line in lines)


def test_only_the_newest_are_listed(site, store_study):
    for number in range(1, 6):
        store_study(f"{number:04}")

    lines = printed(print_studies, site, limit=2).splitlines()

    assert [line.split()[0][-4:] for line in lines[1:]] == ["0005", "0004"]


def test_runs_are_named_with_what_became_of_them(site, ledger, store_study):
    record = store_study()
    ledger.decide(record.study_id, triggered(record, "Created", "New", "Tried"))
    ledger.created(f"{record.study_id}:Created", flow_run_id="run-1")
    ledger.postpone(f"{record.study_id}:Tried", error="Prefect does not answer", next_attempt_at=1.0)

    text = printed(print_studies, site, limit=1)

    assert "Created (run-1), New (waiting), Tried (Prefect does not answer)" in text


def test_what_a_peer_calls_itself_is_no_markup(site, store_study):
    store_study()

    assert "PACS[bold]@10.0.0.1" in printed(print_studies, site, limit=1)


def test_nothing_of_a_patient_is_listed_or_explained(site, ledger, store_study):
    record = store_study()
    (site.flow_directory / "a.yaml").write_text(
        "triggers: [{PatientName: X, SeriesDescription: Y}]\nmodels: [{docker_kwargs: {image: a}}]\n"
    )
    ledger.decide(record.study_id, Decision(outcome="no-match", reason="no flow matches"))

    text = printed(print_studies, site, limit=1)
    text += printed(print_explanation, site, study_id=record.study_id, with_values=False)

    assert "PatientName" in text
    assert leaked_canaries(text) == []


def test_values_are_printed_where_they_are_asked_for(site, store_study):
    record = store_study()
    (site.flow_directory / "a.yaml").write_text(
        "triggers: [{SeriesDescription: Y, BodyPartExamined: HEAD, Sender.Host: x}]\n"
        "models: [{docker_kwargs: {image: a}}]\n"
    )

    text = printed(print_explanation, site, study_id=record.study_id, with_values=True).replace("\n", " ")

    assert "values in the study (patient data):" in text
    assert f"SeriesDescription: {CANARY_SERIES_DESCRIPTION}" in " ".join(text.split())
    assert "BodyPartExamined: (in no instance)" in " ".join(text.split())
    assert "Sender.Host: 10.0.0.1" in " ".join(text.split())


def test_an_explanation_is_of_the_definitions_as_they_are_now(site, store_study):
    record = store_study()
    file = site.flow_directory / "a.yaml"
    file.write_text("triggers: [{Modality: MR}]\nmodels: [{docker_kwargs: {image: a}}]\n")
    before = printed(print_explanation, site, study_id=record.study_id, with_values=False)
    file.write_text("triggers: [{Modality: CT}]\nmodels: [{docker_kwargs: {image: a}}]\n")

    after = printed(print_explanation, site, study_id=record.study_id, with_values=False)

    assert before != after
    assert "a: matches" in after
    assert "a: matches" not in before


def test_a_study_that_is_not_there_is_said_so(site):
    with pytest.raises(StudyNotFoundError):
        printed(print_explanation, site, study_id="0193e4c2-7a54-7cc3-98c4-dc0c0c079999", with_values=False)


def test_looking_leaves_no_trace(site, store_study):
    record = store_study()
    (site.flow_directory / "a.yaml").write_text("triggers: []\nmodels: [{docker_kwargs: {image: a}}]\n")

    printed(print_explanation, site, study_id=record.study_id, with_values=False)

    assert not (site.data_dir / "definitions").exists()


def test_where_nothing_was_received_no_ledger_is_made(site):
    assert printed(print_studies, site, limit=1) == f"no study was received yet in {site.data_dir}\n"
    assert list(site.data_dir.iterdir()) == []


def test_runs_that_a_person_asked_for_stand_behind_what_became_of_the_study(site, ledger, store_study):
    held, triggers = store_study("0001"), store_study("0002")
    ledger.decide(held.study_id, Decision(outcome="held", reason="the association was aborted"))
    ledger.decide(triggers.study_id, triggered(triggers, "A"))
    for record in (held, triggers):
        run = ReprocessedRun(flow="B", flow_run_id="run-b", request_id="request")
        ledger.reprocessed(run if record is held else replace(run, flow_run_id="run-c"), study_id=record.study_id)

    _, newest, oldest = printed(print_studies, site, limit=10).splitlines()

    assert newest.rstrip().endswith("triggered  A (waiting), B again (run-c)")
    assert oldest.rstrip().endswith("the association was aborted, B again (run-b)")


def test_what_is_being_received_is_shown_with_what_it_waits_for(site, ledger, store_study):
    spool = Spool(site.data_dir / "spool", durability="none")
    spool.root.mkdir(exist_ok=True)
    groups = OpenGroups(spool, group_by="study", waiting=Waiting(idle_seconds=30, incomplete_seconds=300))
    for is_complete in (True, False, None):
        reception = spool.open(
            sender=Sender(ae_title="CT1", host="10.0.0.1", port=1),
            called_ae_title="X",
            received_at=datetime(2024, 5, 6, tzinfo=UTC),
        )
        reception.store(received(ct(StudyInstanceUID=f"1.{is_complete}" if is_complete is None else "1.1")))
        if is_complete is not None:
            reception.close()
            groups.take(reception.id, is_complete=is_complete)
            lines = printed(print_studies, site, limit=10).splitlines()
            assert len([line for line in lines if "receiving" in line]) == 1
    text = printed(print_studies, site, limit=10)
    assert "CT1@10.0.0.1" in text
    assert "2 " in next(
        line for line in text.splitlines() if "its sender to come again, for INCOMPLETE_SECONDS" in line
    )
    assert "the end of its association" in text
    assert leaked_canaries(text) == []
    assert "1.1" not in text.replace("10.0.0.1", "")
