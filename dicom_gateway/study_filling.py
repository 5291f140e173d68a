"""Enters into the ledger what it does not know yet of studies, while the gateway runs."""

from __future__ import annotations

import logging
import sqlite3
import threading
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import ClassVar

_log = logging.getLogger(__name__)


class StudyFilling(ABC):
    """A thread that works once through the studies that something is missing of, and ends.

    It may be cut short: what is left is done after the next start.
    """

    action: ClassVar[str]
    missing: ClassVar[str]
    """What it means as long as it is not done; the start of a sentence."""
    entered: ClassVar[str]
    """What it means for the studies that it was done for; the start of a sentence."""

    def __init__(self) -> None:
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name=self.action, daemon=True)

    @abstractmethod
    def study_ids(self) -> Sequence[str]:
        """Return the studies that something is missing of. Raises ``sqlite3.Error``."""

    @abstractmethod
    def enter(self, study_id: str) -> bool:
        """Enter it for one study; return False where a later start has to. Raises ``sqlite3.Error``."""

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    def stop(self) -> None:
        """Finish the study at hand, and stop."""
        self._stopping.set()
        if self._thread.ident is not None:
            self._thread.join()

    def _run(self) -> None:
        extra = {"action": self.action}
        entered = 0
        try:
            for study_id in self.study_ids():
                if self._stopping.is_set():
                    return
                entered += self.enter(study_id)
        except sqlite3.Error as error:
            _log.error("%s (%s); a restart goes on", self.missing, type(error).__name__, extra=extra)
            return
        if entered:
            _log.info("%s: %d", self.entered, entered, extra=extra)
