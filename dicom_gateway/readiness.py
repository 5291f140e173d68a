"""Whether a study that is sent now would be taken: what a load balancer, or a person, asks before sending."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Final

from dicom_gateway import durable_files
from dicom_gateway.errors import LedgerSilentError
from dicom_gateway.ledger_figures import read_ledger_figures

_PROBE: Final = ".can-be-written"
_PROBE_BYTES: Final = b"\0" * 4096


class Readiness:
    """Looks at everything that receiving needs. ``doors`` tell, by their settings, whether they are open."""

    def __init__(self, *, doors: Mapping[str, Callable[[], bool]], spool: Path, ledger: Path) -> None:
        self._doors = doors
        self._spool = spool
        self._ledger = ledger

    def reasons_against(self) -> tuple[str, ...]:
        """Return why nothing should be sent, a line each; empty where all is well."""
        closed = (
            f"{setting}: nothing is received there at this moment"
            for setting, is_open in self._doors.items()
            if not is_open()
        )
        return tuple(reason for reason in (*closed, self._about_spool(), self._about_ledger()) if reason)

    def _about_spool(self) -> str:
        probe = self._spool / _PROBE
        try:
            descriptor = os.open(
                probe, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, durable_files.PRIVATE_FILE
            )
            try:
                is_whole = os.write(descriptor, _PROBE_BYTES) == len(_PROBE_BYTES)
            finally:
                os.close(descriptor)
                with suppress(OSError):
                    probe.unlink()
        except OSError as error:
            return f"DATA_DIR: the spool cannot be written: {error.strerror}"
        return "" if is_whole else "DATA_DIR: the spool cannot be written: the disk is full"

    def _about_ledger(self) -> str:
        try:
            read_ledger_figures(self._ledger)
        except LedgerSilentError as error:
            return f"DATA_DIR: {error}"
        return ""
