"""The studies that a person means by a study id or a StudyInstanceUID."""

from __future__ import annotations

from dicom_gateway.errors import RequestError
from dicom_gateway.ledger import Ledger
from dicom_gateway.uid_key import UidKey
from flows_engine.handoff.run_request import is_study_id


def find_studies(named: str, *, ledger: Ledger, uid_key: UidKey | None) -> tuple[str, ...]:
    """Return the study ids that ``named`` stands for, newest first: a UID may have been received several times.

    Raises ``RequestError`` where there is none.
    """
    if is_study_id(named):
        if not ledger.has(named):
            raise RequestError(f"there is no study {named}; `dicomflow studies` lists those that were received")
        return (named,)
    found = ledger.studies_of(uid_key.hash_of(named)) if uid_key else ()
    if not found:
        reason = "no study of this StudyInstanceUID was received; `dicomflow studies` lists those that were"
        if unread := len(ledger.without_uids()):
            reason += f" ({unread} of them cannot be found by UID: the gateway is yet to read their records)"
        raise RequestError(reason)
    return found
