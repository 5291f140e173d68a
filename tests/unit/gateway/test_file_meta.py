from __future__ import annotations

from pydicom.uid import UID, ExplicitVRLittleEndian

from dicom_gateway.file_meta import IMPLEMENTATION_CLASS_UID, IMPLEMENTATION_VERSION_NAME, file_meta
from tests.fakes.instances import as_file, ct, received


def test_it_is_what_the_library_for_dicom_files_writes():
    for uid in ("1.2.3", "1.2.34"):
        instance = received(ct(), sop_instance_uid=uid)
        written = file_meta(
            sop_class_uid=instance.sop_class_uid, sop_instance_uid=uid, transfer_syntax_uid=ExplicitVRLittleEndian
        )
        assert written + instance.data_set == as_file(instance)


def test_the_software_has_a_name_of_its_own():
    assert UID(IMPLEMENTATION_CLASS_UID).is_valid
    assert 0 < len(IMPLEMENTATION_VERSION_NAME) <= 16
