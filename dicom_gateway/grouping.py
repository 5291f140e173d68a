"""Which instances of one association belong together. Pure."""

from __future__ import annotations

from typing import Final

from dicom_gateway.header import Header

PATIENT_ID: Final = 0x00100020
ISSUER_OF_PATIENT_ID: Final = 0x00100021
STUDY_INSTANCE_UID: Final = 0x0020000D
SERIES_INSTANCE_UID: Final = 0x0020000E

GroupKey = tuple[str, ...]


def group_key(header: Header, *, sop_instance_uid: str) -> GroupKey:
    """Return what an instance shares with the others of its patient, and with no one else's.

    The same Patient ID of two issuers is two patients (PS3.3 C.7.1.1). Where there is no Patient ID, what is known to
    be of one patient stays together: a study, else a series, else only the instance itself.
    """
    patient_id = _whole(header, PATIENT_ID)
    if patient_id:
        return ("patient", patient_id, _whole(header, ISSUER_OF_PATIENT_ID))
    for level, tag in (("study", STUDY_INSTANCE_UID), ("series", SERIES_INSTANCE_UID)):
        uid = _whole(header, tag)
        if uid:
            return (level, uid)
    return ("instance", sop_instance_uid)


def _whole(header: Header, tag: int) -> str:
    return "\\".join(header.values(tag) or ())
