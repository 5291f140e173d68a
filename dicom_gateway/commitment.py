"""What storage commitment says: a request that was understood, and the report on it (PS3.4 J.3). Pure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from pydantic import BaseModel, ConfigDict
from pydicom.dataset import Dataset

from dicom_gateway.uid import is_uid
from flows_engine.handoff.run_request import Sender

STORAGE_COMMITMENT: Final = "1.2.840.10008.1.20.1"
"""The Push Model's SOP class."""
THE_INSTANCE: Final = "1.2.840.10008.1.20.1.1"
"""The one SOP instance of it."""
REQUEST_COMMITMENT: Final = 1
"""The action that there is (PS3.4 table J.3.2-1)."""

NO_SUCH_INSTANCE: Final = 0x0112
CLASS_CONFLICT: Final = 0x0119
PROCESSING_FAILURE: Final = 0x0110

_ALL_COMMITTED: Final = 1
_SOME_FAILED: Final = 2
_MOST_REFERENCES: Final = 200_000


class NoCommitmentRequestError(ValueError):
    """The action's information is none. The message quotes nothing of it."""


class Reference(BaseModel):
    """One instance that is asked about. Both are UIDs."""

    model_config = ConfigDict(frozen=True, hide_input_in_errors=True)

    sop_class_uid: str
    sop_instance_uid: str


class CommitmentRequest(BaseModel):
    """Who asks, about which instances, and how often an answer did not reach it."""

    model_config = ConfigDict(frozen=True, hide_input_in_errors=True)

    transaction_uid: str
    requester: Sender
    asked_at: float
    """Unix time, as is ``next_attempt_at``."""
    references: tuple[Reference, ...]
    attempts: int = 0
    next_attempt_at: float = 0.0


def read_action(information: Dataset) -> tuple[str, tuple[Reference, ...]]:
    """Return Transaction UID and references. Raises ``NoCommitmentRequestError``."""
    transaction_uid = str(information.get("TransactionUID") or "")
    if not is_uid(transaction_uid):
        raise NoCommitmentRequestError("it has no Transaction UID")
    items = information.get("ReferencedSOPSequence") or ()
    if not items:
        raise NoCommitmentRequestError("it references no instance")
    if len(items) > _MOST_REFERENCES:
        raise NoCommitmentRequestError(f"it references more than {_MOST_REFERENCES} instances")
    references = []
    for item in items:
        uids = [str(item.get(keyword) or "") for keyword in ("ReferencedSOPClassUID", "ReferencedSOPInstanceUID")]
        if not all(map(is_uid, uids)):
            raise NoCommitmentRequestError("a reference is no pair of UIDs")
        references.append(Reference(sop_class_uid=uids[0], sop_instance_uid=uids[1]))
    return transaction_uid, tuple(references)


def report_on(request: CommitmentRequest, failures: Mapping[Reference, int]) -> tuple[int, Dataset]:
    """Return type and information of the event (PS3.4 table J.3.3-1). ``failures`` are reasons (PS3.3 C.14.1.1)."""
    information = Dataset()
    information.TransactionUID = request.transaction_uid
    committed = [_item(one) for one in request.references if one not in failures]
    failed = [_item(one, reason=failures[one]) for one in request.references if one in failures]
    if committed:
        information.ReferencedSOPSequence = committed
    if failed:
        information.FailedSOPSequence = failed
    return _SOME_FAILED if failed else _ALL_COMMITTED, information


def _item(reference: Reference, *, reason: int | None = None) -> Dataset:
    item = Dataset()
    item.ReferencedSOPClassUID = reference.sop_class_uid
    item.ReferencedSOPInstanceUID = reference.sop_instance_uid
    if reason is not None:
        item.FailureReason = reason
    return item
