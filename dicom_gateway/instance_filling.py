"""Enters the SOP Instance UIDs of studies that the ledger's index does not have yet, while the gateway runs."""

from __future__ import annotations

import logging
import os
import sqlite3
import threading
from pathlib import Path
from typing import Final

from dicom_gateway.ledger import Ledger
from dicom_gateway.uid_key import UidKey
from flows_engine.handoff.study_store import StudyNotFoundError, StudyStore

_log = logging.getLogger(__name__)
_ACTION: Final = {"action": "enter_instances"}


def uids_of_files(folder: Path) -> frozenset[str]:
    """Return the SOP Instance UIDs of a study by the names of its files. Raises ``OSError``."""

    def fail(error: OSError) -> None:
        raise error

    names = (name for _, _, files in os.walk(folder, onerror=fail) for name in files)
    return frozenset(name.removesuffix(".dcm").partition("_")[0] for name in names)


class InstanceFilling:
    """A thread that works once through the studies that are not in the index, newest first, and ends.

    It may be cut short: what is left is done after the next start.
    """

    def __init__(self, *, ledger: Ledger, store: StudyStore, uid_key: UidKey) -> None:
        self._ledger = ledger
        self._store = store
        self._uid_key = uid_key
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="instance-filling", daemon=True)

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    def stop(self) -> None:
        """Finish the study at hand, and stop."""
        self._stopping.set()
        if self._thread.ident is not None:
            self._thread.join()

    def _run(self) -> None:
        entered = 0
        try:
            for study_id in self._ledger.without_instances():
                if self._stopping.is_set():
                    return
                entered += self._enter(study_id)
        except sqlite3.Error as error:
            _log.error("the index of instances has gaps (%s); a restart goes on", type(error).__name__, extra=_ACTION)
            return
        if entered:
            _log.info("studies whose instances can be committed from now on: %d", entered, extra=_ACTION)

    def _enter(self, study_id: str) -> bool:
        try:
            uids = uids_of_files(self._store.input_folder(study_id))
        except (StudyNotFoundError, FileNotFoundError):
            uids = frozenset()  # somebody removed the study
        except OSError:
            return False  # out of reach: a later start looks again
        self._ledger.enter_instances(study_id, self._uid_key.instance_hashes(uids))
        return True
