"""Enters the SOP Instance UIDs of studies that the ledger's index does not have yet, while the gateway runs."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from dicom_gateway.ledger import Ledger
from dicom_gateway.study_filling import StudyFilling
from dicom_gateway.uid_key import UidKey
from flows_engine.handoff.study_store import StudyNotFoundError, StudyStore


def uids_of_files(folder: Path) -> frozenset[str]:
    """Return the SOP Instance UIDs of a study by the names of its files. Raises ``OSError``."""

    def fail(error: OSError) -> None:
        raise error

    names = (name for _, _, files in os.walk(folder, onerror=fail) for name in files)
    return frozenset(name.removesuffix(".dcm").partition("_")[0] for name in names)


class InstanceFilling(StudyFilling):
    """Works through the studies that are not in the index, newest first."""

    action = "enter_instances"
    missing = "the index of instances has gaps"
    entered = "studies whose instances can be committed from now on"

    def __init__(self, *, ledger: Ledger, store: StudyStore, uid_key: UidKey) -> None:
        super().__init__()
        self._ledger = ledger
        self._store = store
        self._uid_key = uid_key

    def study_ids(self) -> Sequence[str]:
        """Return the studies that are not in the index, newest first."""
        return self._ledger.without_instances()

    def enter(self, study_id: str) -> bool:
        """Enter the SOP Instance UIDs of one study."""
        try:
            uids = uids_of_files(self._store.input_folder(study_id))
        except (StudyNotFoundError, FileNotFoundError):
            uids = frozenset()  # somebody removed the study
        except OSError:
            return False  # out of reach: a later start looks again
        self._ledger.enter_instances(study_id, self._uid_key.instance_hashes(uids))
        return True
