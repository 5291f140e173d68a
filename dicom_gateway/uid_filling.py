"""Enters the StudyInstanceUIDs of studies that were received before the ledger kept them, while the gateway runs."""

from __future__ import annotations

from collections.abc import Sequence

from dicom_gateway.ledger import Ledger
from dicom_gateway.study_filling import StudyFilling
from dicom_gateway.uid_key import UidKey
from flows_engine.handoff.study_store import StudyNotFoundError, StudyStore


class UidFilling(StudyFilling):
    """Works through the studies that are found by no UID yet."""

    action = "enter_uids"
    missing = "studies cannot be found by their UID yet"
    entered = "studies that are found by their StudyInstanceUID from now on"

    def __init__(self, *, ledger: Ledger, store: StudyStore, uid_key: UidKey) -> None:
        super().__init__()
        self._ledger = ledger
        self._store = store
        self._uid_key = uid_key

    def study_ids(self) -> Sequence[str]:
        """Return the studies that are found by no UID yet."""
        return self._ledger.without_uids()

    def enter(self, study_id: str) -> bool:
        """Enter the StudyInstanceUIDs of one study."""
        try:
            hashes = self._uid_key.hashes_of(self._store.record(study_id))
        except (StudyNotFoundError, OSError):
            return False  # gone, damaged or out of reach: a later start looks again
        self._ledger.enter_uids(study_id, hashes)
        return True
