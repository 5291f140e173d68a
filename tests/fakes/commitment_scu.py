"""Asks for storage commitment, and takes the reports: on the same association, or on those that come."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

from pydicom.dataset import Dataset
from pydicom.uid import CTImageStorage, generate_uid
from pynetdicom import AE, evt
from pynetdicom.association import Association
from pynetdicom.sop_class import StorageCommitmentPushModel, StorageCommitmentPushModelInstance


class Reports:
    """What came in, in order: type of the event, and its information. Each is answered with ``status``."""

    def __init__(self, status: int = 0x0000) -> None:
        self.status = status
        self.events: list[tuple[int, Dataset]] = []
        self._came = threading.Condition()

    def take(self, event: evt.Event) -> tuple[int, None]:
        """Take a report."""
        with self._came:
            self.events.append((event.request.EventTypeID, event.event_information))
            self._came.notify_all()
        return self.status, None

    def wait(self, *, count: int = 1, seconds: float = 20.0) -> list[tuple[int, Dataset]]:
        """Return the reports, once there are so many."""
        with self._came:
            assert self._came.wait_for(lambda: len(self.events) >= count, timeout=seconds), "no report came"
            return list(self.events)


@contextmanager
def commitment_association(port: int, reports: Reports, *, ae_title: str = "ASKER") -> Iterator[Association]:
    """Open an association that may ask for commitment."""
    entity = AE(ae_title=ae_title)
    entity.add_requested_context(StorageCommitmentPushModel)
    entity.add_requested_context(CTImageStorage)
    opened = entity.associate("127.0.0.1", port, evt_handlers=[(evt.EVT_N_EVENT_REPORT, reports.take)])
    assert opened.is_established
    try:
        yield opened
    finally:
        if opened.is_established:
            opened.release()


def ask(
    opened: Association,
    uids: Iterable[str],
    *,
    sop_class_uid: str = CTImageStorage,
    action: int = 1,
    instance: str = StorageCommitmentPushModelInstance,
    information: Dataset | None = None,
) -> tuple[int, str]:
    """Ask for the commitment of instances; return status and Transaction UID."""
    if information is None:
        information = Dataset()
        information.TransactionUID = generate_uid()
        information.ReferencedSOPSequence = [_reference(sop_class_uid, uid) for uid in uids]
    status, _ = opened.send_n_action(information, action, StorageCommitmentPushModel, instance)
    return int(status.Status), str(information.get("TransactionUID"))


@contextmanager
def report_scp(port: int, reports: Reports) -> Iterator[None]:
    """Listen for reports that come on associations of their own."""
    entity = AE(ae_title="ASKER")
    entity.add_supported_context(StorageCommitmentPushModel, scu_role=True, scp_role=True)
    server = entity.start_server(
        ("127.0.0.1", port), block=False, evt_handlers=[(evt.EVT_N_EVENT_REPORT, reports.take)]
    )
    try:
        yield
    finally:
        server.shutdown()


def _reference(sop_class_uid: str, sop_instance_uid: str) -> Dataset:
    item = Dataset()
    item.ReferencedSOPClassUID = sop_class_uid
    item.ReferencedSOPInstanceUID = sop_instance_uid
    return item
