from __future__ import annotations

import pytest
from pydicom.dataset import Dataset
from pydicom.uid import CTImageStorage

from dicom_gateway.commitment import (
    CLASS_CONFLICT,
    NO_SUCH_INSTANCE,
    CommitmentRequest,
    NoCommitmentRequestError,
    Reference,
    read_action,
    report_on,
)
from flows_engine.handoff.run_request import Sender

ONE, OTHER, THIRD = (Reference(sop_class_uid=CTImageStorage, sop_instance_uid=f"1.2.{number}") for number in (1, 2, 3))


def item(sop_class_uid=CTImageStorage, sop_instance_uid="1.2.1"):
    dataset = Dataset()
    dataset.ReferencedSOPClassUID = sop_class_uid
    dataset.ReferencedSOPInstanceUID = sop_instance_uid
    return dataset


def action(*items, transaction_uid="1.9"):
    dataset = Dataset()
    dataset.TransactionUID = transaction_uid
    dataset.ReferencedSOPSequence = list(items)
    return dataset


def request(*references):
    requester = Sender(ae_title="ASKER", host="10.0.0.1", port=104)
    return CommitmentRequest(transaction_uid="1.9", requester=requester, asked_at=0.0, references=references)


def test_a_request_is_its_transaction_and_its_references():
    assert read_action(action(item(), item(sop_instance_uid="1.2.2"))) == ("1.9", (ONE, OTHER))


@pytest.mark.parametrize(
    "information",
    [
        Dataset(),
        action(),
        action(item(), transaction_uid=""),
        action(Dataset()),
        action(item(), item(sop_instance_uid="")),
        action(item(sop_class_uid="no uid")),
        action(item(sop_instance_uid="../../CANARY")),
    ],
)
def test_what_is_none_is_refused_without_a_quote(information):
    with pytest.raises(NoCommitmentRequestError) as caught:
        read_action(information)
    assert "CANARY" not in str(caught.value)


def test_where_all_are_committed_nothing_has_failed():
    event, information = report_on(request(ONE, OTHER), {})
    assert (event, information.TransactionUID) == (1, "1.9")
    assert [one.ReferencedSOPInstanceUID for one in information.ReferencedSOPSequence] == ["1.2.1", "1.2.2"]
    assert "FailedSOPSequence" not in information


def test_what_has_failed_stands_apart_with_its_reason():
    failures = {OTHER: NO_SUCH_INSTANCE, THIRD: CLASS_CONFLICT}
    event, information = report_on(request(ONE, OTHER, THIRD), failures)
    assert event == 2
    assert [one.ReferencedSOPInstanceUID for one in information.ReferencedSOPSequence] == ["1.2.1"]
    assert [one.FailureReason for one in information.FailedSOPSequence] == [NO_SUCH_INSTANCE, CLASS_CONFLICT]


def test_where_nothing_is_committed_nothing_is_referenced():
    event, information = report_on(request(ONE), {ONE: NO_SUCH_INSTANCE})
    assert event == 2
    assert "ReferencedSOPSequence" not in information
