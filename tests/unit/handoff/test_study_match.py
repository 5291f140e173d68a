from __future__ import annotations

import pytest
from pydicom.dataset import Dataset
from pydicom.sequence import Sequence

from flows_engine.handoff import study_match as module
from flows_engine.handoff.fingerprint import FingerprintBuilder
from flows_engine.handoff.header import read_header
from flows_engine.handoff.study_match import match_study, searched_columns
from flows_engine.handoff.study_store import StudyStore
from tests.factories import study_record
from tests.fakes.definitions import flow
from tests.fakes.instances import as_file, ct, received

STEP = "RequestAttributesSequence.ScheduledProcedureStepDescription"
PRIVATE = '(0029,"ACME 1.0",10)'


def instance(description, *, private="special", **values):
    step = Dataset()
    step.ScheduledProcedureStepDescription = description
    dataset = ct(RequestAttributesSequence=Sequence([step]), **values)
    dataset.private_block(0x0029, "ACME 1.0", create=True).add_new(0x10, "LO", private)
    return dataset


@pytest.fixture
def stored(tmp_path):
    """Return what stores instances as a study whose record holds the top level of each, as every record does."""

    def store(*datasets):
        builder = FingerprintBuilder()
        store = StudyStore(tmp_path / "studies")
        for number, dataset in enumerate(datasets):
            one = received(dataset)
            builder.add(read_header(one.data_set, transfer_syntax_uid=one.transfer_syntax_uid))
            path = store.folder(study_record(builder.build()).study_id) / "input" / f"{number}.dcm"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(as_file(one))
        return study_record(builder.build()), store

    return store


@pytest.mark.parametrize(
    ("trigger", "found"),
    [
        ({STEP: "Head"}, True),
        ({STEP: "Head", "Modality": "CT"}, True),
        ({STEP: "Neck", "SeriesDescription": "of the neck"}, True),
        ({STEP: "Head", "SeriesDescription": "of the neck"}, False),
        ({STEP: "Knee"}, False),
        ({STEP: "~Knee"}, True),
        ({STEP: ["~Neck", "~Head"]}, False),
        ({PRIVATE: "^special$"}, True),
        ({PRIVATE: "other"}, False),
        ({'(0029,"ACME 2.0",10)': ".*"}, False),
    ],
)
def test_what_lies_deep_is_matched_from_the_files(stored, trigger, found):
    study, store = stored(instance("Head"), instance("Neck", SeriesDescription="of the neck"))
    (finding,) = match_study(study, [flow("f", trigger)], store=store).flows
    assert finding.verdict == ("matched" if found else "not-matched")


def test_the_report_counts_deep_conditions_as_all_others(stored):
    study, store = stored(instance("Head"), instance("Neck"), ct())
    (finding,) = match_study(study, [flow("f", {STEP: "Knee"})], store=store).flows
    (condition,) = finding.triggers[0].conditions
    assert (condition.tag, condition.holding, condition.having) == (STEP, 0, 2)


def test_files_are_read_only_where_all_else_holds(stored, monkeypatch):
    study, store = stored(instance("Head"))
    reads = []
    read_study = module.read_study
    monkeypatch.setattr(module, "read_study", lambda folder, **keys: reads.append(folder) or read_study(folder, **keys))

    report = match_study(
        study,
        [flow("plain", {"Modality": "CT"}), flow("other", {STEP: "Head", "Modality": "MR"}, {STEP: "Neck"})],
        store=store,
    )
    assert report.matched == ("plain",)
    assert [condition.tag for trigger in report.flows[1].triggers for condition in trigger.conditions] == ["Modality"]
    assert reads == []

    report = match_study(study, [flow("a", {STEP: "Head"}), flow("b", {PRIVATE: "x"}), flow("c")], store=store)
    assert [finding.verdict for finding in report.flows] == ["matched", "not-matched", "on-request"]
    assert len(reads) == 1


def test_a_study_with_more_values_than_are_searched_is_undecided(stored, monkeypatch):
    monkeypatch.setattr("flows_engine.handoff.deep_values.MOST_VALUES", 0)
    study, store = stored(instance("Head"))
    report = match_study(study, [flow("f", {STEP: "Head"}), flow("g", {"Modality": "CT"})], store=store)
    assert report.matched == ("g",)
    assert [finding.flow for finding in report.undecided] == ["f"]
    assert report.undecided[0].problem.startswith(f"{STEP}: an instance has more than 0 different values")


def test_files_that_are_gone_leave_undecided_only_the_flows_that_ask_for_them(stored):
    study, store = stored(instance("Head"))
    folder = store.input_folder(study.study_id)
    (folder / "0.dcm").rename(folder / ".." / "0.dcm")
    (finding,) = match_study(study, [flow("f", {STEP: "Head"})], store=store).flows
    assert finding.problem == f"{STEP}: the files of the study are not those that were received"
    folder.rename(folder.with_name("elsewhere"))
    definitions = [flow("f", {STEP: "Head"}), flow("g", {"Modality": "CT"})]
    report = match_study(study, definitions, store=store)
    assert report.matched == ("g",)
    assert [finding.problem for finding in report.undecided] == [f"{STEP}: the files of the study are not there"]
    assert "00400275.00400007" not in searched_columns(study, definitions, store=store)


def test_the_values_that_are_searched_can_be_shown(stored):
    study, store = stored(instance("Head"), instance("Neck"))
    columns = searched_columns(study, [flow("f", {STEP: "Head"})], store=store)
    assert columns["00400275.00400007"].values == (("Head",), ("Neck",))
    assert columns["Sender.AETitle"].values == (("PACS",),)
