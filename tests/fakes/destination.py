"""A destination without a network: it answers each file with a status, or goes away."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from flows_engine.errors import DestinationUnavailableError
from flows_engine.interfaces import DeliveryReport, Rejection
from flows_engine.output_files import is_dicom

_STORED = frozenset({0x0000, 0xB000, 0xB006, 0xB007})


class FakeDestination:
    """Answers by ``status``; None means that it went away before it could answer."""

    def __init__(self, status: Callable[[Path], int | None] = lambda _: 0, *, name: str = "FAKE@nowhere:104") -> None:
        self._status = status
        self._name = name
        self.received: list[Path] = []

    @property
    def name(self) -> str:
        """What people call it."""
        return self._name

    def deliver(self, files: Sequence[Path], *, on_delivered: Callable[[Path], None]) -> DeliveryReport:
        """Take ``files``, one by one."""
        delivered: list[Path] = []
        rejected: list[Rejection] = []
        for path in files:
            if not is_dicom(path):
                rejected.append(Rejection(path=path, status=None, reason="it is not a DICOM file"))
                continue
            status = self._status(path)
            if status is None:
                raise DestinationUnavailableError(f"{self._name} went away")
            self.received.append(path)
            if status in _STORED:
                on_delivered(path)
                delivered.append(path)
            else:
                rejected.append(Rejection(path=path, status=status, reason=f"status 0x{status:04X}"))
        return DeliveryReport(delivered=tuple(delivered), rejected=tuple(rejected))
