"""What the ledger says of all studies together, read beside the gateway's work, and in bounded time.

A connection of its own, for one look: neither does a look wait for a write, nor a write for a look.
"""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Mapping
from contextlib import closing
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from dicom_gateway.errors import LedgerSilentError

_LONGEST_LOOK_SECONDS: Final = 2.0
_STEPS_BETWEEN_LOOKS_AT_THE_CLOCK: Final = 10_000


@dataclass(frozen=True, kw_only=True)
class LedgerFigures:
    """How many studies ended how, and what waits to be triggered."""

    studies: Mapping[str, int]
    """By outcome."""
    pending_count: int
    """Runs that are still to be created in Prefect."""
    oldest_pending_at: datetime | None
    """When the first of them was decided on."""


def read_ledger_figures(path: Path) -> LedgerFigures:
    """Read them. Raises ``LedgerSilentError`` where the ledger does not answer, or not in time."""
    deadline = time.monotonic() + _LONGEST_LOOK_SECONDS
    try:
        with closing(sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True, timeout=1.0)) as connection:
            connection.set_progress_handler(
                lambda: time.monotonic() > deadline,
                _STEPS_BETWEEN_LOOKS_AT_THE_CLOCK,
            )
            return _figures(connection)
    except sqlite3.Error as error:
        raise LedgerSilentError(f"the ledger does not answer: {error}") from error


def _figures(connection: sqlite3.Connection) -> LedgerFigures:
    studies = dict(connection.execute("SELECT outcome, count(*) FROM studies GROUP BY outcome"))
    pending_count, oldest = connection.execute(
        "SELECT count(*), min(coalesce(decided_at, committed_at)) "
        "FROM runs CROSS JOIN studies USING (study_id) WHERE state = 'pending'"
    ).fetchone()
    return LedgerFigures(
        studies=studies,
        pending_count=pending_count,
        oldest_pending_at=datetime.fromisoformat(oldest).astimezone(UTC) if oldest else None,
    )
