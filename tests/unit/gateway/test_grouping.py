from __future__ import annotations

import pytest
from pydicom.uid import ExplicitVRLittleEndian

from dicom_gateway.grouping import PATIENT_ID, Patients, group_key
from flows_engine.handoff.header import SPECIFIC_CHARACTER_SET, Header, read_header
from tests.fakes.instances import ct, encoded


def key(uid="1.2.3", **values):
    header = read_header(encoded(ct(**values)), transfer_syntax_uid=ExplicitVRLittleEndian)
    return group_key(header, sop_instance_uid=uid)


def test_one_patient_is_one_group_whatever_the_study():
    assert key(PatientID="A", StudyInstanceUID="1.1") == key(PatientID="A", StudyInstanceUID="1.2")


def test_two_patients_are_two_groups():
    assert key(PatientID="A") != key(PatientID="B")


def test_the_same_id_of_two_issuers_is_two_patients():
    assert key(PatientID="A", IssuerOfPatientID="X") != key(PatientID="A", IssuerOfPatientID="Y")


def test_without_a_patient_id_a_study_stays_together():
    assert key(PatientID="", StudyInstanceUID="1.1") == key(PatientID=None, StudyInstanceUID="1.1")
    assert key(PatientID="", StudyInstanceUID="1.1") != key(PatientID="", StudyInstanceUID="1.2")


def test_without_a_study_a_series_stays_together():
    alone = {"PatientID": None, "StudyInstanceUID": None}
    assert key(SeriesInstanceUID="1.1", **alone) == key(SeriesInstanceUID="1.1", **alone)
    assert key(SeriesInstanceUID="1.1", **alone) != key(SeriesInstanceUID="1.2", **alone)


def test_without_anything_an_instance_is_alone():
    nothing = {"PatientID": None, "StudyInstanceUID": None, "SeriesInstanceUID": None}
    assert key(uid="1.1", **nothing) != key(uid="1.2", **nothing)


def test_a_patient_id_that_equals_a_study_uid_is_still_a_patient():
    assert key(PatientID="1.1") != key(PatientID=None, StudyInstanceUID="1.1")


def numbers(*people):
    """Return the patients' numbers of instances with these values, as they come in one association."""
    patients = Patients()
    return [
        patients.number(
            read_header(
                encoded(ct(**{"PatientID": "ANONYMOUS", **values})), transfer_syntax_uid=ExplicitVRLittleEndian
            ),
            sop_instance_uid="1.2.3",
        )
        for values in people
    ]


def test_ids_that_only_decoding_makes_the_same_are_two_patients():
    def undecodable(raw):
        header = read_header(encoded(ct(PatientID="AB")), transfer_syntax_uid=ExplicitVRLittleEndian)
        elements = {
            **header.elements,
            PATIENT_ID: ("LO", raw),
            SPECIFIC_CHARACTER_SET: ("CS", b"ISO_IR 192"),
        }
        return group_key(Header(elements=elements, little_endian=True), sop_instance_uid="1.2.3")

    assert undecodable(b"\xff1") != undecodable(b"\xfe1")
    assert undecodable(b"\xff1 ") == undecodable(b"\xff1")


@pytest.mark.parametrize("other", ["DOE^JOHN", "Doe^John^M", "doe^john^^^", " Doe ^ John ", ""])
def test_small_differences_of_spelling_are_one_patient(other):
    assert numbers({"PatientName": "Doe^John"}, {"PatientName": other}) == [0, 0]


@pytest.mark.parametrize("other", ["Doe^Jane", "Roe^John", "Doe", "Anonymous"])
def test_other_names_under_one_id_are_other_patients(other):
    names = ("Doe^John", other, "Doe^John", other)
    assert numbers(*({"PatientName": name} for name in names)) == [0, 1, 0, 1]


def test_other_names_in_one_study_without_an_id_are_other_patients():
    assert numbers(*({"PatientID": "", "PatientName": name} for name in ("Doe^John", "Roe^Jane"))) == [0, 1]


def test_names_that_differ_in_one_writing_are_two_patients():
    written = ["Wang^Xiao=王^小東", "Wang^Xiao=王^小冬", "Wang^Xiao"]
    assert numbers(*({"PatientName": name, "SpecificCharacterSet": "ISO_IR 192"} for name in written)) == [0, 1, 2]


def test_other_birth_dates_under_one_id_and_name_are_other_patients():
    assert numbers(*({"PatientBirthDate": date} for date in ("19500101", "19600101", "1950.01.01"))) == [0, 1, 0]


def test_what_says_too_little_between_two_patients_joins_neither():
    assert numbers(*({"PatientName": name} for name in ("Doe^John", "Roe^Jane", "", ""))) == [0, 1, 2, 2]
