from __future__ import annotations

from pydicom.uid import ExplicitVRLittleEndian

from dicom_gateway.grouping import group_key
from dicom_gateway.header import read_header
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
