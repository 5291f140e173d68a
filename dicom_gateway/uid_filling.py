"""Enters the StudyInstanceUIDs of studies that were received before the ledger kept them, while the gateway runs."""

from __future__ import annotations

import logging
import sqlite3
import threading
from typing import Final

from dicom_gateway.ledger import Ledger
from dicom_gateway.uid_key import UidKey
from flows_engine.handoff.study_store import StudyNotFoundError, StudyStore

_log = logging.getLogger(__name__)
_ACTION: Final = {"action": "enter_uids"}


class UidFilling:
    """A thread that works once through the studies that are found by no UID yet, and ends.

    It may be cut short: what is left is done after the next start.
    """

    def __init__(self, *, ledger: Ledger, store: StudyStore, uid_key: UidKey) -> None:
        self._ledger = ledger
        self._store = store
        self._uid_key = uid_key
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="uid-filling", daemon=True)

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    def stop(self) -> None:
        """Finish the study at hand, and stop."""
        self._stopping.set()
        if self._thread.ident is not None:
            self._thread.join()

    def _run(self) -> None:
        try:
            entered = 0
            for study_id in self._ledger.without_uids():
                if self._stopping.is_set():
                    return
                entered += self._enter(study_id)
        except sqlite3.Error as error:
            _log.error(
                "studies cannot be found by their UID yet (%s); a restart goes on", type(error).__name__, extra=_ACTION
            )
            return
        if entered:
            _log.info("studies that are found by their StudyInstanceUID from now on: %d", entered, extra=_ACTION)

    def _enter(self, study_id: str) -> bool:
        try:
            hashes = self._uid_key.hashes_of(self._store.record(study_id))
        except (StudyNotFoundError, OSError):
            return False  # gone, damaged or out of reach: a later start looks again
        self._ledger.enter_uids(study_id, hashes)
        return True
