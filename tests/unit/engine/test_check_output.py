from __future__ import annotations

import logging
import os
from pathlib import Path
from typing import Any

import pytest

from flows_engine.check_output import OutputCounts, check_output
from flows_engine.definition.expect import Expect
from flows_engine.errors import UnexpectedOutputError, WorkspaceError
from flows_engine.handoff.study_store import Fingerprint, TagColumn
from tests.factories import CANARY_ID, CANARY_NAME, ct_slice, leaked_canaries, write_instances

STUDY_UID = "1.2.826.0.1.3680043.8.498.7001"
OTHER_STUDY_UID = "1.2.826.0.1.3680043.8.498.9009"
OTHER = {"PatientID": "OTHERCANARY-22", "PatientName": "OTHERSURNAME^JO", "StudyInstanceUID": OTHER_STUDY_UID}


@pytest.fixture
def output(tmp_path: Path) -> Path:
    (tmp_path / "input").mkdir()
    (tmp_path / "output" / "deep").mkdir(parents=True)
    return tmp_path / "output"


def leave(output: Path, *names: str, **values: Any) -> None:
    for name in names:
        instance = ct_slice(**{"StudyInstanceUID": STUDY_UID, **values})
        instance.save_as(output / name, enforce_file_format=True)


def fingerprint(**columns: str) -> Fingerprint:
    said = {"t00100020": CANARY_ID, "t00100010": CANARY_NAME, "t0020000D": STUDY_UID, "t00080018": "1.7", **columns}
    return Fingerprint(
        instance_count=1,
        columns={tag[1:]: TagColumn(values=((value,),), index=(0,)) for tag, value in said.items()},
    )


def check(output: Path, given: Fingerprint | None = None, *, is_whole: bool = True, **expect: Any) -> OutputCounts:
    return check_output(
        output,
        expect=Expect.model_validate(expect),
        fingerprint=fingerprint() if given is None else given,
        input_folder=output.parent / "input",
        is_whole=is_whole,
        logger=logging.getLogger("test"),
    )


def refusal(output: Path, given: Fingerprint | None = None, **expect: Any) -> str:
    with pytest.raises(UnexpectedOutputError) as caught:
        check(output, given, **expect)
    sentence = str(caught.value)
    start = "the output is not as expected, so nothing is sent: "
    assert sentence.startswith(start)
    assert sentence.isprintable()
    assert leaked_canaries(sentence) == []
    assert [word for word in ("OTHERCANARY", "OTHERSURNAME", STUDY_UID, OTHER_STUDY_UID) if word in sentence] == []
    return sentence.removeprefix(start)


def test_an_output_of_the_patient_is_as_expected(output: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    leave(output, "a", "deep/b", PatientID=f"{CANARY_ID} ")
    (output / "notes.txt").write_text("fine")

    assert check(output, same_study=True, references_exist=True, modality="CT", min_files=3) == OutputCounts(
        file_count=3, dicom_count=2
    )
    assert caplog.messages == ["the output is as expected: 3 files, 2 of them DICOM"]
    assert caplog.records[0].action == "output_checked"  # type: ignore[attr-defined]


def test_another_patient_is_refused_with_its_files_and_the_way_out(output: Path) -> None:
    leave(output, "a")
    leave(output, "b", "c", "deep/d", "deep/e", **OTHER)

    assert refusal(output) == (
        "same_patient: another Patient ID than the input: b, c, deep/d and 1 more "
        "(set `expect: {same_patient: false}` if the model is meant to change it)"
    )
    assert check(output, same_patient=False).dicom_count == 5


def test_a_study_without_an_id_is_compared_by_name(output: Path) -> None:
    leave(output, "a", PatientID="INVENTED")
    without_id = fingerprint(t00100020="")

    assert check(output, without_id).dicom_count == 1
    leave(output, "b", **OTHER)
    assert "another Patient's Name than the input: b" in refusal(output, without_id)
    assert check(output, fingerprint(t00100020="", t00100010="")).dicom_count == 2


def test_what_was_not_given_to_the_models_is_not_of_the_input(output: Path) -> None:
    given = output.parent / "input"
    given.mkdir(exist_ok=True)
    ct_slice(StudyInstanceUID=OTHER_STUDY_UID).save_as(given / "a.dcm", enforce_file_format=True)
    leave(output, "a")

    assert check(output, same_study=True).dicom_count == 1
    with pytest.raises(UnexpectedOutputError, match="same_study: another Study Instance UID than the input: a"):
        check(output, is_whole=False, same_study=True)
    leave(output, "a", StudyInstanceUID=OTHER_STUDY_UID)
    assert check(output, is_whole=False, same_study=True).dicom_count == 1


def test_all_that_is_not_as_expected_stands_in_one_line(output: Path) -> None:
    leave(output, "a", **OTHER)
    (output / "x.txt").write_text("no")
    os.mkfifo(output / "pipe")

    sentence = refusal(output, min_files=3, dicom_only=True, same_study=True, modality=["RTSTRUCT", "SEG"])

    assert [part.split(" (")[0] for part in sentence.split("; ")] == [
        "min_files: 2 of at least 3 files are left",
        "dicom_only: 1 of kind fifo are left",
        "same_patient: another Patient ID than the input: a",
        "same_study: another Study Instance UID than the input: a",
        "modality: CT, not RTSTRUCT or SEG: a",
        "and 1 more reasons",
    ]


@pytest.mark.parametrize("cut", [140, 700, -1])
def test_what_begins_as_dicom_and_cannot_be_read_is_not_sent(output: Path, cut: int) -> None:
    leave(output, "a", "b")
    (output / "b").write_bytes((output / "b").read_bytes()[:cut])

    sentence = refusal(output)

    assert sentence.startswith("same_patient: cannot be read, since its ")
    assert ": b (the model has to leave whole DICOM files)" in sentence
    assert "dicom_only: cannot be read" in refusal(output, same_patient=False, dicom_only=True)
    assert check(output, same_patient=False).dicom_count == 2


def test_references_lead_into_the_input_or_the_output(output: Path) -> None:
    leave(output, "a", SOPInstanceUID="1.8")
    structures = ct_slice(StudyInstanceUID=STUDY_UID)
    for uid, holds in (("1.7", True), ("1.8", True), ("1.9", False)):
        item = ct_slice(PatientID=None)
        item.ReferencedSOPInstanceUID = uid
        structures.ReferencedImageSequence = [item]
        structures.save_as(output / "rt", enforce_file_format=True)
        if holds:
            assert check(output, references_exist=True).dicom_count == 2
        else:
            assert "references_exist: refers to instances that are neither in the input" in refusal(
                output, references_exist=True
            )


def test_a_path_is_told_without_any_patient_and_on_one_line(output: Path) -> None:
    names = [f"{CANARY_NAME}\n.dcm", "OTHERSURNAME_JO.dcm", f"{'x' * 150}{OTHER_STUDY_UID}.dcm"]
    leave(output, *names, **OTHER)
    leave(output, f"deep/{STUDY_UID}.dcm", Modality="OTHERSURNAME", **{**OTHER, "PatientName": "OTHERSURNAME"})

    sentence = refusal(output, modality="SEG")

    assert "[patient]\\n.dcm" in sentence
    assert "…x" in sentence
    assert len(sentence) < 1000


def test_a_folder_that_is_named_by_a_short_id_is_told_without_it(output: Path) -> None:
    leave(output, "deep/417.dcm", **{**OTHER, "PatientID": "417"})

    assert ": deep/[patient].dcm (" in refusal(output)


def test_a_link_is_not_followed(output: Path) -> None:
    leave(output.parent, "elsewhere", **OTHER)
    (output / "link").symlink_to(output.parent / "elsewhere")

    assert check(output) == OutputCounts(file_count=0, dicom_count=0)
    assert "1 of kind symbolic link are left" in refusal(output, dicom_only=True)


def test_the_input_is_read_where_its_record_does_not_tell(output: Path) -> None:
    empty = Fingerprint(instance_count=0, columns={})
    write_instances([ct_slice(StudyInstanceUID=STUDY_UID)], output.parent / "input")
    leave(output, "a")
    assert check(output, empty, same_study=True).dicom_count == 1

    leave(output, f"{CANARY_ID}.dcm", **OTHER)
    assert "another Patient ID than the input: [patient].dcm" in refusal(output, empty)

    (output.parent / "input" / "damaged").write_bytes(b"no")
    with pytest.raises(WorkspaceError, match="what was received cannot be compared with"):
        check(output, empty)


def test_an_id_that_cannot_be_decoded_is_compared_byte_for_byte(output: Path) -> None:
    undecoded = fingerprint(t00100020="\N{REPLACEMENT CHARACTER}")
    for name, raw in (("input/a", b"\xe4"), ("output/same", b"\xe4"), ("output/other", b"\xf6")):
        instance = ct_slice(PatientID=None, SpecificCharacterSet="ISO_IR 192")
        instance.add_new("PatientID", "LO", raw)
        instance.save_as(output.parent / name, enforce_file_format=True)

    assert "another Patient ID than the input: other (" in refusal(output, undecoded)
