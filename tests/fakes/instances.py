"""Made instances. The patient's name is a canary: found in a log or an error text, it tells of a leak."""

from __future__ import annotations

from io import BytesIO

from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.filewriter import write_file_meta_info
from pydicom.uid import (
    UID,
    CTImageStorage,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    generate_uid,
)
from pynetdicom.dsutils import encode

from dicom_gateway.file_meta import IMPLEMENTATION_CLASS_UID, IMPLEMENTATION_VERSION_NAME
from dicom_gateway.reception import ReceivedInstance

CANARY_NAME = "CANARY^PATIENT"
CANARY_ID = "CANARY-ID-4711"
CANARIES = ("CANARY", "19010203", "ACC-CANARY")

_FORMS = {
    ExplicitVRLittleEndian: (False, True),
    ImplicitVRLittleEndian: (True, True),
    ExplicitVRBigEndian: (False, False),
}


def ct(**values: object) -> Dataset:
    """Return a small CT instance with a UID of its own. A value of None leaves its element out."""
    dataset = Dataset()
    given: dict[str, object] = {
        "SOPClassUID": CTImageStorage,
        "SOPInstanceUID": generate_uid(),
        "Modality": "CT",
        "AccessionNumber": "ACC-CANARY",
        "PatientName": CANARY_NAME,
        "PatientID": CANARY_ID,
        "PatientBirthDate": "19010203",
        "StudyInstanceUID": "1.2.826.0.1.1",
        "SeriesInstanceUID": "1.2.826.0.1.1.1",
        "SeriesDescription": "Head CANARY",
        "Rows": 4,
        "Columns": 4,
        "BitsAllocated": 16,
        "BitsStored": 16,
        "HighBit": 15,
        "PixelRepresentation": 0,
        "SamplesPerPixel": 1,
        "PhotometricInterpretation": "MONOCHROME2",
        "PixelData": bytes(range(32)),
    }
    for keyword, value in {**given, **values}.items():
        if value is not None:
            setattr(dataset, keyword, value)
    dataset["PixelData"].VR = "OW"
    return dataset


def encoded(dataset: Dataset, *, transfer_syntax_uid: str = ExplicitVRLittleEndian) -> bytes:
    """Return the data set as it travels in a C-STORE."""
    implicit, little = _FORMS[transfer_syntax_uid]
    content = encode(dataset, implicit, little)
    assert content is not None
    return content


def received(
    dataset: Dataset, *, sop_instance_uid: str | None = None, transfer_syntax_uid: str = ExplicitVRLittleEndian
) -> ReceivedInstance:
    """Return what the handlers make of a C-STORE with ``dataset``. ``sop_instance_uid`` is the command's."""
    return ReceivedInstance(
        sop_class_uid=CTImageStorage,
        sop_instance_uid=sop_instance_uid or str(dataset.SOPInstanceUID),
        transfer_syntax_uid=transfer_syntax_uid,
        data_set=encoded(dataset, transfer_syntax_uid=transfer_syntax_uid),
    )


def as_file(instance: ReceivedInstance) -> bytes:
    """Return what an instance is on disk, as the library for DICOM files writes its meta information."""
    meta = FileMetaDataset()
    meta.FileMetaInformationVersion = b"\0\1"
    meta.MediaStorageSOPClassUID = UID(instance.sop_class_uid)
    meta.MediaStorageSOPInstanceUID = UID(instance.sop_instance_uid)
    meta.TransferSyntaxUID = UID(instance.transfer_syntax_uid)
    meta.ImplementationClassUID = UID(IMPLEMENTATION_CLASS_UID)
    meta.ImplementationVersionName = IMPLEMENTATION_VERSION_NAME
    encoded_meta = BytesIO()
    write_file_meta_info(encoded_meta, meta)
    return b"\0" * 128 + b"DICM" + encoded_meta.getvalue() + instance.data_set
