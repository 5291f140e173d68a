"""Tells the gateway what was counted: once a second, and whenever somebody says that it is worth telling.

One message holds everything that was counted since the last, however much that was. What dies untold with its process
is the last second's.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Mapping
from typing import Final

from pydantic import ValidationError

from dicom_gateway.process_channel import ProcessChannel
from dicom_gateway.tally import Counts, Tally

_log = logging.getLogger(__name__)

TALLY_KIND: Final = "tally"
_EVERY_SECONDS: Final = 1.0


class TellingCounts:
    """A thread that tells. It ends with its process."""

    def __init__(self, tally: Tally, channel: ProcessChannel) -> None:
        self._tally = tally
        self._channel = channel
        self._thread = threading.Thread(target=self._run, name="counts", daemon=True)
        self._telling = threading.Lock()

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    def tell(self) -> bool:
        """Tell what there is now; return whether the gateway is still there."""
        with self._telling:
            counts = self._tally.take()
            return counts is None or self._channel.send(TALLY_KIND, counts=counts.model_dump(mode="json"))

    def _run(self) -> None:
        pause = threading.Event()
        while self.tell():
            pause.wait(_EVERY_SECONDS)


def take_counts(values: Mapping[str, object], tally: Tally) -> None:
    """Add what a process tells to a tally; what cannot be understood is logged, and harms nobody."""
    try:
        tally.add(Counts.model_validate(values.get("counts")))
    except ValidationError:
        _log.error("counts of a receiving process were not understood", extra={"action": "counts"})
