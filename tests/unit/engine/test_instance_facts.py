from __future__ import annotations

from pathlib import Path

import pytest
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.sequence import Sequence
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
)

from flows_engine.data_set_walk import UnreadableError
from flows_engine.errors import WorkspaceError
from flows_engine.expectations import received, taken_together
from flows_engine.handoff.fingerprint import FingerprintBuilder
from flows_engine.handoff.header import read_file_header
from flows_engine.instance_facts import instance_facts
from tests.factories import CANARY_ID, ct_slice, leaked_canaries

SYNTAXES = [ExplicitVRLittleEndian, ImplicitVRLittleEndian, ExplicitVRBigEndian, DeflatedExplicitVRLittleEndian]


def save(path: Path, dataset: Dataset, syntax: str = ExplicitVRLittleEndian) -> Path:
    plain = Dataset()
    plain.update(dataset)
    plain.file_meta = FileMetaDataset()
    plain.file_meta.TransferSyntaxUID = syntax
    plain.save_as(path, enforce_file_format=True)
    return path


def patient_id(path: Path, raw: bytes, character_sets: str | None) -> frozenset[str]:
    """The Patient ID of a file in which it stands as ``raw``."""
    instance = ct_slice(PatientID=None, SpecificCharacterSet=character_sets)
    instance.add_new("PatientID", "LO", raw)
    return instance_facts(save(path, instance)).patient_ids


def referring(uid: str, *sequences: str) -> Dataset:
    """An instance that refers to ``uid`` from within ``sequences``, each in the one before."""
    inner = Dataset()
    inner.ReferencedSOPInstanceUID = uid
    for keyword in reversed(sequences):
        outer = Dataset()
        setattr(outer, keyword, Sequence([inner]))
        inner = outer
    inner.update(ct_slice())
    return inner


@pytest.mark.parametrize("syntax", SYNTAXES)
def test_what_an_instance_says(tmp_path: Path, syntax: str) -> None:
    instance = ct_slice(PatientID=" ABC", PatientName="DOE^JANE^^", StudyInstanceUID="1.2", SOPInstanceUID="1.3.4")
    facts = instance_facts(save(tmp_path / "a", instance, syntax))

    assert (facts.patient_ids, facts.patient_names) == ({"ABC"}, {"DOE^JANE"})
    assert (facts.study_instance_uids, facts.sop_instance_uids, facts.modalities) == ({"1.2"}, {"1.3.4"}, {"CT"})


def test_what_is_not_there_or_empty_is_nothing(tmp_path: Path) -> None:
    facts = instance_facts(save(tmp_path / "a", ct_slice(PatientID="", PatientName=None, StudyInstanceUID="")))

    assert facts.patient_ids == facts.patient_names == facts.study_instance_uids == frozenset()


def test_the_same_text_in_two_character_sets_is_the_same(tmp_path: Path) -> None:
    same = [
        patient_id(tmp_path / "a", "Jürgen-7".encode("latin-1"), "ISO_IR 100"),
        patient_id(tmp_path / "b", "Jürgen-7".encode(), "ISO_IR 192"),
        patient_id(tmp_path / "c", "Jürgen-7".encode("iso8859-2"), "ISO_IR 101"),
        patient_id(tmp_path / "d", b"J\x1b\x2d\x41\xfcrgen-7", "\\ISO 2022 IR 100"),
    ]
    assert same == [{"Jürgen-7"}] * 4


def test_two_texts_that_cannot_be_decoded_are_the_same_only_byte_for_byte(tmp_path: Path) -> None:
    one = patient_id(tmp_path / "a", b"\xe4\xf6", "ISO_IR 192")

    assert one == patient_id(tmp_path / "b", b"\xe4\xf6", "ISO_IR 192")
    assert one != patient_id(tmp_path / "c", b"\xe4\xfc", "ISO_IR 192")


@pytest.mark.parametrize(
    ("character_sets", "name"),
    [
        (None, "Doe^Jane"),
        ("ISO_IR 100", "Müller^Jürgen"),
        ("ISO_IR 192", "Ωνάσης^Ü"),
        ("ISO_IR 13", "ﾔﾏﾀﾞ^ﾀﾛｳ"),
        (["", "ISO 2022 IR 87"], "Yamada^Tarou=山田^太郎=やまだ^たろう"),
        (["", "ISO 2022 IR 149"], "Hong^Gildong=洪^吉洞=홍^길동"),
        ("GB18030", "Wang^XiaoDong=王^小东="),
    ],
)
def test_it_says_what_the_gateway_found(tmp_path: Path, character_sets: str | list[str] | None, name: str) -> None:
    instance = ct_slice(SpecificCharacterSet=character_sets, PatientName=name, PatientID=name.partition("^")[0])
    path = save(tmp_path / "a", instance)
    gateways = FingerprintBuilder()
    gateways.add(read_file_header(path.read_bytes()))

    assert received(gateways.build()) == taken_together([instance_facts(path)])


@pytest.mark.parametrize("syntax", SYNTAXES)
def test_references_are_found_at_any_depth(tmp_path: Path, syntax: str) -> None:
    sequences = ("ROIContourSequence", "ContourSequence", "ContourImageSequence")
    path = save(tmp_path / "a", referring("1.9", *sequences), syntax)

    assert instance_facts(path).missing_reference_count == 0
    assert instance_facts(path, known_instances={"1.9"}).missing_reference_count == 0
    assert instance_facts(path, known_instances={"1.8"}).missing_reference_count == 1


@pytest.mark.parametrize(
    ("sequences", "missing"),
    [
        (("ReferencedStudySequence",), 0),
        (("ReferencedPerformedProcedureStepSequence",), 0),
        (("ReferencedFrameOfReferenceSequence", "RTReferencedStudySequence"), 0),
        (("ReferencedFrameOfReferenceSequence", "RTReferencedStudySequence", "RTReferencedSeriesSequence"), 1),
    ],
)
def test_a_reference_to_a_study_is_none_to_an_instance(
    tmp_path: Path, sequences: tuple[str, ...], missing: int
) -> None:
    path = save(tmp_path / "a", referring("1.9", *sequences))

    assert instance_facts(path, known_instances=set()).missing_reference_count == missing


def test_what_cannot_be_read_says_why_without_the_patient(tmp_path: Path) -> None:
    path = save(tmp_path / "a", ct_slice())
    whole = path.read_bytes()
    for content in (whole[:-5], whole[:140], whole[:132] + CANARY_ID.encode() * 9, b"", CANARY_ID.encode() * 20):
        path.write_bytes(content)
        with pytest.raises(UnreadableError) as caught:
            instance_facts(path)
        assert leaked_canaries(str(caught.value)) == []


def test_an_element_that_stands_there_twice_says_both_and_too_often_nothing(tmp_path: Path) -> None:
    path = save(tmp_path / "a", ct_slice(PatientID="ABCD"))
    whole = path.read_bytes()
    again = b"\x10\x00\x20\x00LO\x04\x00WXYZ"

    path.write_bytes(whole + again)
    assert instance_facts(path).patient_ids == {"ABCD", "WXYZ"}
    path.write_bytes(whole + again * 10)
    with pytest.raises(UnreadableError, match="more than 10 times"):
        instance_facts(path)


def test_a_link_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(save(tmp_path / "a", ct_slice()))

    with pytest.raises(WorkspaceError):
        instance_facts(tmp_path / "link")
