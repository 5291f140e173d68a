"""In which studies the instance of a UID is, as the ledger's file says: for processes that have no ledger."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Iterator, Mapping
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Final

from dicom_gateway.errors import LedgerSilentError

_BUSY_SECONDS: Final = 5.0


class InstanceLookup:
    """A look into the index."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._connection = connection

    @property
    def is_complete(self) -> bool:
        """Whether all studies are in the index."""
        found = self._connection.execute(
            "SELECT 1 FROM studies WHERE NOT EXISTS "
            "(SELECT 1 FROM indexed_studies WHERE indexed_studies.study_id = studies.study_id) LIMIT 1"
        ).fetchone()
        return found is None

    def studies(self, uid_hashes: Iterable[bytes]) -> Mapping[bytes, tuple[str, ...]]:
        """Return the studies that have an instance of each UID so hashed, newest first."""
        statement = "SELECT study_id FROM instances WHERE uid_hash = ? ORDER BY study_id DESC"
        return {
            uid_hash: tuple(study_id for (study_id,) in self._connection.execute(statement, (uid_hash,)))
            for uid_hash in uid_hashes
        }


@contextmanager
def instance_lookup(ledger: Path) -> Iterator[InstanceLookup]:
    """Give a look into the index of a ledger. Raises ``LedgerSilentError``."""
    try:
        with closing(
            sqlite3.connect(f"{ledger.absolute().as_uri()}?mode=ro", uri=True, timeout=_BUSY_SECONDS)
        ) as connection:
            yield InstanceLookup(connection)
    except sqlite3.Error as error:
        raise LedgerSilentError(f"the ledger does not answer: {error}") from error
