from __future__ import annotations

from typing import Any

import pytest

from flows_engine.definition.expect import Expect
from flows_engine.expectations import (
    WAY_OUT,
    InstanceFacts,
    Received,
    comparable,
    comparable_name,
    of_folder,
    of_instance,
    of_other_file,
    of_unreadable,
    received,
    taken_together,
)
from flows_engine.handoff.study_store import Fingerprint, TagColumn
from tests.factories import CANARY_ID, CANARY_NAME, leaked_canaries

NOTHING = Received(
    patient_ids=frozenset(),
    patient_names=frozenset(),
    study_instance_uids=frozenset(),
    sop_instance_uids=frozenset(),
)


def given(**values: set[str]) -> Received:
    return Received(**{**vars(NOTHING), **{name: frozenset(value) for name, value in values.items()}})


def facts(*, missing_reference_count: int = 0, **values: set[str]) -> InstanceFacts:
    sets = {name: frozenset(value) for name, value in values.items()}
    return InstanceFacts(missing_reference_count=missing_reference_count, **sets)


def fingerprint(*, instance_count: int = 1, left_out_count: int = 0, **columns: str) -> Fingerprint:
    return Fingerprint(
        instance_count=instance_count,
        left_out_count=left_out_count,
        columns={
            tag.lstrip("t"): TagColumn(values=(tuple(value.split("\\")),), index=(0,)) for tag, value in columns.items()
        },
    )


def reasons(expect: Expect, left: InstanceFacts, received_: Received) -> list[str]:
    return [f"{finding.expectation}: {finding.reason}" for finding in of_instance(expect, left, given=received_)]


@pytest.mark.parametrize(
    ("received_", "left", "expected"),
    [
        (given(patient_ids={"A"}), facts(patient_ids={"A"}), []),
        (given(patient_ids={"A"}), facts(patient_ids={"B"}), ["same_patient: another Patient ID than the input"]),
        (given(patient_ids={"A"}), facts(patient_ids={"A", "B"}), ["same_patient: another Patient ID than the input"]),
        (given(patient_ids={"A"}), facts(patient_names={"N"}), ["same_patient: no Patient ID"]),
        (given(patient_ids={"A"}, patient_names={"N"}), facts(patient_ids={"A"}, patient_names={"M"}), []),
        (given(patient_names={"N"}), facts(patient_ids={"A"}, patient_names={"N"}), []),
        (given(patient_names={"N"}), facts(), ["same_patient: no Patient's Name"]),
        (
            given(patient_names={"N"}),
            facts(patient_names={"M"}),
            ["same_patient: another Patient's Name than the input"],
        ),
        (NOTHING, facts(patient_ids={"B"}), []),
    ],
)
def test_the_id_is_compared_and_the_name_where_the_input_has_no_id(
    received_: Received, left: InstanceFacts, expected: list[str]
) -> None:
    assert reasons(Expect(), left, received_) == expected
    assert reasons(Expect(same_patient=False), left, received_) == []


def test_the_study_is_one_of_the_input() -> None:
    expect = Expect(same_patient=False, same_study=True)

    assert reasons(expect, facts(study_instance_uids={"1"}), given(study_instance_uids={"1", "2"})) == []
    for left, received_ in ((facts(study_instance_uids={"3"}), given(study_instance_uids={"1"})), (facts(), NOTHING)):
        assert len(reasons(expect, left, received_)) == 1


def test_a_reference_to_nothing_is_told() -> None:
    expect = Expect(same_patient=False, references_exist=True)

    assert reasons(expect, facts(), NOTHING) == []
    assert reasons(expect, facts(missing_reference_count=1), NOTHING) == [
        "references_exist: refers to instances that are neither in the input nor in the output"
    ]


@pytest.mark.parametrize(
    ("left", "expected"),
    [
        ({"RTSTRUCT"}, []),
        ({"CT"}, ["modality: CT, not RTSTRUCT or SEG"]),
        ({"RTSTRUCT", "CT"}, ["modality: CT, not RTSTRUCT or SEG"]),
        (set(), ["modality: none, not RTSTRUCT or SEG"]),
        ({"Doe^Jane"}, ["modality: another, not RTSTRUCT or SEG"]),
        ({"A" * 17}, ["modality: another, not RTSTRUCT or SEG"]),
    ],
)
def test_a_modality_is_said_where_it_looks_like_one(left: set[str], expected: list[str]) -> None:
    assert (
        reasons(Expect(same_patient=False, modality=("RTSTRUCT", "SEG")), facts(modalities=left), NOTHING) == expected
    )


def test_files_are_counted_and_what_is_no_dicom_is_told() -> None:
    folder = [finding.reason for finding in of_folder(Expect(min_files=3), file_count=2, skipped={"fifo": 1})]

    assert folder == ["2 of at least 3 files are left"]
    assert [*of_folder(Expect(min_files=2), file_count=2, skipped={"fifo": 1}), *of_other_file(Expect())] == []
    only = Expect(dicom_only=True)
    assert [finding.reason for finding in of_folder(only, file_count=0, skipped={"fifo": 1})] == [
        "1 of kind fifo are left"
    ]
    assert [finding.reason for finding in of_other_file(only)] == ["no DICOM file"]


@pytest.mark.parametrize(
    ("expect", "expectation"),
    [
        ({}, "same_patient"),
        ({"same_patient": False, "modality": ("CT",)}, "modality"),
        ({"same_patient": False, "dicom_only": True}, "dicom_only"),
    ],
)
def test_of_what_cannot_be_read_nothing_holds(expect: dict[str, Any], expectation: str) -> None:
    (finding,) = of_unreadable(Expect(**expect), "its data set is cut short")

    assert (finding.expectation, finding.reason) == (expectation, "cannot be read, since its data set is cut short")
    assert list(of_unreadable(Expect(same_patient=False, min_files=1), "")) == []


def test_each_expectation_has_a_way_out() -> None:
    assert WAY_OUT.keys() == Expect.model_fields.keys()
    assert "`expect: {same_patient: false}`" in WAY_OUT["same_patient"]


def test_padding_and_how_a_letter_is_composed_do_not_count() -> None:
    assert comparable(" A B \0") == "A B"
    assert comparable("A \\ B ") == "A\\B"
    assert comparable("u\N{COMBINING DIAERESIS}") == comparable("\N{LATIN SMALL LETTER U WITH DIAERESIS}")
    assert comparable(" \\ ") == comparable("\0") == comparable_name("") == comparable_name("^^=") == ""
    assert comparable_name("DOE ^JANE^^^ ") == comparable_name("DOE^JANE=") == "DOE^JANE"
    assert comparable_name("DOE^JANE") != comparable_name("DOE^JANE^M")


def test_the_record_of_a_study_tells_what_was_received() -> None:
    said = received(fingerprint(t00100020=" A ", t00100010="N^^", t0020000D="1.2", t00080018="1.3"))

    assert said == given(patient_ids={"A"}, patient_names={"N"}, study_instance_uids={"1.2"}, sop_instance_uids={"1.3"})
    assert received(fingerprint(t00100020="")) == NOTHING


@pytest.mark.parametrize(
    "print_",
    [
        fingerprint(instance_count=0),
        fingerprint(left_out_count=1, t00100020="A"),
        fingerprint(t00100020="A\N{REPLACEMENT CHARACTER}"),
        fingerprint(t00100010="\x1b$B;3ED"),
    ],
)
def test_where_the_record_does_not_tell_the_instances_are_asked(print_: Fingerprint) -> None:
    assert received(print_) is None


def test_what_instances_say_is_taken_together() -> None:
    both = taken_together([facts(patient_ids={"A"}, study_instance_uids={"1"}), facts(study_instance_uids={"2"})])

    assert both == given(patient_ids={"A"}, study_instance_uids={"1", "2"})


def test_no_finding_holds_a_value_of_a_patient() -> None:
    expect = Expect(same_study=True, references_exist=True, modality=("SEG",))
    left = facts(
        patient_ids={CANARY_ID}, patient_names={CANARY_NAME}, study_instance_uids={"1.2.99"}, missing_reference_count=1
    )
    for received_ in (given(patient_ids={"A"}), given(patient_names={"N"})):
        text = repr(list(of_instance(expect, left, given=received_)))
        assert leaked_canaries(text) == []
        assert "1.2.99" not in text
