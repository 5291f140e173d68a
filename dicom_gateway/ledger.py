"""What became of every study, on disk: received, decided, triggered. A restart carries on from here.

One SQLite file. The decision on a study and the runs it asks for are written in one transaction, so that a run is
neither forgotten nor asked for without a decision (the outbox pattern). No tag value of a patient is in it.

Several processes may have it open at once: the gateway, and a command that lists or releases studies. DATA_DIR
therefore lies on a local file system, or on one whose locks work.
"""

from __future__ import annotations

import json
import sqlite3
import threading
from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Final, Literal

from dicom_gateway.errors import StudyNotHeldError
from flows_engine.handoff.run_request import RunRequest
from flows_engine.handoff.study_store import StudyOutcome, StudyRecord

RunState = Literal["pending", "created", "refused"]

EVERY_FLOW: Final = ""
"""Names what concerns all flows, where otherwise one would be named."""

_BUSY_TIMEOUT_SECONDS: Final = 30.0
_LONGEST_ERROR: Final = 500
_PAGE: Final = 500
_NOW: Final = "strftime('%Y-%m-%dT%H:%M:%f+00:00', 'now')"
_PRIORITY: Final = "iif(json_valid(request), json_extract(request, '$.definition.priority'), 0)"
"""Of a run. To be written down without error, a row need not be one that this version can read."""
_SCHEMA: Final = f"""
CREATE TABLE IF NOT EXISTS studies (
    study_id       TEXT PRIMARY KEY,
    received_at    TEXT NOT NULL,
    committed_at   TEXT NOT NULL DEFAULT ({_NOW}),
    decided_at     TEXT,
    sender         TEXT NOT NULL,
    instance_count INTEGER NOT NULL,
    complete       INTEGER NOT NULL,
    released       INTEGER NOT NULL DEFAULT 0,
    outcome        TEXT NOT NULL DEFAULT 'received',
    reason         TEXT NOT NULL DEFAULT '',
    explanation    TEXT NOT NULL DEFAULT ''
) STRICT;
CREATE INDEX IF NOT EXISTS studies_by_outcome ON studies (outcome);
CREATE TABLE IF NOT EXISTS announced (
    study_id     TEXT PRIMARY KEY,
    held_because TEXT NOT NULL
) STRICT;
CREATE TABLE IF NOT EXISTS runs (
    study_id        TEXT NOT NULL REFERENCES studies (study_id),
    flow            TEXT NOT NULL,
    request         TEXT NOT NULL,
    idempotency_key TEXT NOT NULL,
    state           TEXT NOT NULL DEFAULT 'pending',
    flow_run_id     TEXT NOT NULL DEFAULT '',
    attempts        INTEGER NOT NULL DEFAULT 0,
    last_error      TEXT NOT NULL DEFAULT '',
    next_attempt_at REAL NOT NULL DEFAULT 0,
    PRIMARY KEY (study_id, flow)
) STRICT;
CREATE UNIQUE INDEX IF NOT EXISTS runs_by_key ON runs (idempotency_key);
CREATE INDEX IF NOT EXISTS runs_by_priority ON runs ({_PRIORITY} DESC, study_id, flow, next_attempt_at)
    WHERE state = 'pending';
CREATE INDEX IF NOT EXISTS runs_by_next_attempt ON runs (next_attempt_at) WHERE state = 'pending';
CREATE TABLE IF NOT EXISTS delays (
    flow   TEXT PRIMARY KEY,
    reason TEXT NOT NULL
) STRICT;
CREATE TABLE IF NOT EXISTS reprocessed (
    flow_run_id TEXT PRIMARY KEY,
    study_id    TEXT NOT NULL,
    flow        TEXT NOT NULL,
    request_id  TEXT NOT NULL
) STRICT;
CREATE INDEX IF NOT EXISTS reprocessed_by_study ON reprocessed (study_id);
CREATE TABLE IF NOT EXISTS study_uids (
    uid_hash TEXT NOT NULL,
    study_id TEXT NOT NULL,
    PRIMARY KEY (uid_hash, study_id)
) STRICT, WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS study_uids_by_study ON study_uids (study_id);
CREATE TABLE IF NOT EXISTS instances (
    uid_hash BLOB NOT NULL,
    study_id TEXT NOT NULL,
    PRIMARY KEY (uid_hash, study_id)
) STRICT, WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS indexed_studies (study_id TEXT PRIMARY KEY) STRICT, WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS uid_key (check_value TEXT NOT NULL) STRICT;
"""
_NO_UID: Final = ""
"""Stands among the hashes of a study that has no StudyInstanceUID: it was looked at."""
_EARLIEST: Final = ""
_LATEST: Final = "~"
"""Stand before and behind every moment, as text."""


@dataclass(frozen=True, kw_only=True)
class LedgerRun:
    """One flow run that a study asks for, and how far that is."""

    study_id: str
    flow: str
    idempotency_key: str
    state: RunState
    flow_run_id: str
    attempts: int
    last_error: str
    """Why it could not be created yet, or never will be."""


@dataclass(frozen=True, kw_only=True)
class ReprocessedRun:
    """One flow run that a person asked for. ``request_id`` is the flow run of the request that made it."""

    flow: str
    flow_run_id: str
    request_id: str


@dataclass(frozen=True, kw_only=True)
class ReceivedStudy:
    """One study of a span of time, as far as it is known before its record is read."""

    study_id: str
    outcome: StudyOutcome


@dataclass(frozen=True, kw_only=True)
class LedgerStudy:
    """One study, what was decided, and why. ``explanation`` has several lines: one a flow, and one a reason."""

    study_id: str
    received_at: datetime
    """When the first instance of its association came."""
    committed_at: datetime
    """When its association had ended, and it lay in the store."""
    decided_at: datetime | None
    """When it was last matched."""
    sender: str
    instance_count: int
    complete: bool
    released: bool
    outcome: StudyOutcome
    reason: str
    explanation: str
    runs: tuple[LedgerRun, ...]
    reprocessed: tuple[ReprocessedRun, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Decision:
    """The decision on one study. ``requests`` are the runs to be created, each with its idempotency key."""

    outcome: StudyOutcome
    reason: str
    explanation: str = ""
    requests: tuple[tuple[RunRequest, str], ...] = ()


@dataclass(frozen=True, kw_only=True)
class PendingRun:
    """A run that is still to be created. ``request_json`` is a ``RunRequest``, perhaps of an earlier version."""

    study_id: str
    flow: str
    idempotency_key: str
    request_json: str
    attempts: int


class Ledger:
    """The file ``DATA_DIR/ledger.sqlite``. Safe to use from several threads and processes.

    Promise: when a method that writes returns, what it wrote survives a power cut.
    """

    def __init__(self, path: Path) -> None:
        self._lock = threading.Lock()
        self._connection = sqlite3.connect(
            path, timeout=_BUSY_TIMEOUT_SECONDS, check_same_thread=False, isolation_level=None
        )
        self._connection.row_factory = sqlite3.Row
        self._connection.execute("PRAGMA journal_mode = WAL")
        self._connection.execute("PRAGMA synchronous = FULL")
        self._connection.execute("PRAGMA foreign_keys = ON")
        self._connection.executescript(_SCHEMA)

    def close(self) -> None:
        """Close the file. The ledger cannot be used afterwards."""
        with self._lock:
            self._connection.close()

    def announce(self, study_id: str, *, held_because: str = "") -> None:
        """Write down that a study is about to be entered, and why it will be held, if it will.

        A study that is announced already stays as it was announced. A study in the store that is neither entered nor
        announced did not come from this gateway's spool.
        """
        with self._transaction() as connection:
            connection.execute(
                "INSERT OR IGNORE INTO announced (study_id, held_because) VALUES (?, ?)",
                (study_id, _one_line(held_because)),
            )

    def is_announced(self, study_id: str) -> bool:
        """Tell whether a study was about to be entered, and was not yet."""
        return bool(self._read("SELECT 1 FROM announced WHERE study_id = ?", study_id))

    def add(self, record: StudyRecord, *, uid_hashes: Collection[str] | None = None) -> bool:
        """Enter a study that is in the store, held where it was announced so; return False where it was entered
        before. ``uid_hashes`` are those of its StudyInstanceUIDs, by which it is found again; None if they are not
        known yet.
        """
        sender = f"{record.sender.ae_title}@{record.sender.host}"
        row = (record.study_id, _to_text(record.received_at), sender, record.instance_count, record.complete)
        return self._add(row, held_because="", uid_hashes=uid_hashes)

    def add_unreadable(self, study_id: str, *, reason: str) -> bool:
        """Enter a study as held of which nothing but the id is known; return False where it was entered before."""
        row = (study_id, _to_text(datetime.fromtimestamp(0, tz=UTC)), "UNKNOWN@", 0, False)
        return self._add(row, held_because=_one_line(reason), uid_hashes=())

    def _add(
        self, row: tuple[str, str, str, int, bool], *, held_because: str, uid_hashes: Collection[str] | None
    ) -> bool:
        study_id = row[0]
        with self._transaction() as connection:
            announced = connection.execute(
                "SELECT held_because FROM announced WHERE study_id = ?", (study_id,)
            ).fetchone()
            reason = held_because or (announced["held_because"] if announced else "")
            cursor = connection.execute(
                "INSERT OR IGNORE INTO studies (study_id, received_at, sender, instance_count, complete, outcome, "
                "reason) VALUES (?, ?, ?, ?, ?, ?, ?)",
                (*row, "held" if reason else "received", reason),
            )
            connection.execute("DELETE FROM announced WHERE study_id = ?", (study_id,))
            if uid_hashes is not None:
                _enter_uids(connection, study_id, uid_hashes)
            return cursor.rowcount == 1

    def has(self, study_id: str) -> bool:
        """Tell whether a study was entered."""
        return bool(self._read("SELECT 1 FROM studies WHERE study_id = ?", study_id))

    def undecided(self) -> tuple[tuple[str, bool], ...]:
        """Return the ids of all studies without a decision, oldest first, each with whether a person released it."""
        rows = self._read("SELECT study_id, released FROM studies WHERE outcome = 'received' ORDER BY study_id")
        return tuple((row["study_id"], bool(row["released"])) for row in rows)

    def decide(self, study_id: str, decision: Decision) -> None:
        """Write down a decision and the runs it asks for, all or nothing. A study that is decided already is left
        alone.

        A flow whose run was created, or is about to be, for this study is not asked for again.
        """
        with self._transaction() as connection:
            cursor = connection.execute(
                f"UPDATE studies SET outcome = ?, reason = ?, explanation = ?, decided_at = {_NOW} "  # noqa: S608
                "WHERE study_id = ? AND outcome = 'received'",
                (decision.outcome, decision.reason, decision.explanation, study_id),
            )
            if cursor.rowcount == 0:
                return
            connection.executemany(
                "INSERT INTO runs (study_id, flow, request, idempotency_key) VALUES (?, ?, ?, ?) "
                "ON CONFLICT (study_id, flow) DO UPDATE SET request = excluded.request, state = 'pending', "
                "idempotency_key = excluded.idempotency_key, attempts = 0, last_error = '', next_attempt_at = 0 "
                "WHERE state = 'refused'",
                [
                    (study_id, request.definition.name, request.model_dump_json(), key)
                    for request, key in decision.requests
                ],
            )

    def supersede(self, study_id: str, *, by: str) -> None:
        """Let a held study wait for nobody any more, since all of it is part of another one."""
        with self._transaction() as connection:
            connection.execute(
                "UPDATE studies SET outcome = 'no-match', reason = ? WHERE study_id = ? AND outcome = 'held'",
                (f"more of it came later, and all of it is study {by}", study_id),
            )

    def release(self, study_id: str) -> None:
        """Have a study that is held, or matched nothing, decided again, as if it were complete.

        Raises ``StudyNotHeldError`` for any other.
        """
        with self._transaction() as connection:
            cursor = connection.execute(
                "UPDATE studies SET outcome = 'received', reason = '', released = 1 "
                "WHERE study_id = ? AND outcome IN ('held', 'no-match')",
                (study_id,),
            )
            if cursor.rowcount == 0:
                raise StudyNotHeldError(f"study {study_id} is not held; `dicomflow studies` lists those that are")

    def next_due(
        self, *, now: float, horizon_seconds: float, except_keys: Iterable[str] = (), except_flows: Iterable[str] = ()
    ) -> PendingRun | None:
        """Return the run to create next at ``now`` (Unix time), but for some, or None: by priority, then the oldest.

        A run that is to wait longer than ``horizon_seconds`` is due as well: the clock was set back since.
        """
        # INDEXED BY: in order, the search ends at the first. However many wait, it never reads or sorts them all.
        rows = self._read(
            "SELECT * FROM runs INDEXED BY runs_by_priority "  # noqa: S608  # the text is all ours
            "WHERE state = 'pending' AND (next_attempt_at <= ? OR next_attempt_at > ?) "
            "AND flow NOT IN (SELECT value FROM json_each(?)) "
            "AND idempotency_key NOT IN (SELECT value FROM json_each(?)) "
            f"ORDER BY {_PRIORITY} DESC, study_id, flow LIMIT 1",
            *(now, now + horizon_seconds, json.dumps(list(except_flows)), json.dumps(list(except_keys))),
        )
        return _pending_run(rows[0]) if rows else None

    def next_due_at(self, *, now: float) -> float | None:
        """Return when the next run that is not due yet will be (Unix time), None where there is none."""
        (row,) = self._read(
            "SELECT min(next_attempt_at) AS soonest FROM runs INDEXED BY runs_by_next_attempt "
            "WHERE state = 'pending' AND next_attempt_at > ?",
            now,
        )
        soonest: float | None = row["soonest"]
        return soonest

    def created(self, idempotency_key: str, *, flow_run_id: str) -> None:
        """Write down that a run exists."""
        with self._transaction() as connection:
            connection.execute(
                "UPDATE runs SET state = 'created', flow_run_id = ?, attempts = attempts + 1, last_error = '' "
                "WHERE idempotency_key = ?",
                (flow_run_id, idempotency_key),
            )

    def postpone(self, idempotency_key: str, *, error: str, next_attempt_at: float) -> None:
        """Write down that a run could not be created yet, and when to try again (Unix time)."""
        with self._transaction() as connection:
            connection.execute(
                "UPDATE runs SET attempts = attempts + 1, last_error = ?, next_attempt_at = ? "
                "WHERE idempotency_key = ?",
                (_one_line(error), next_attempt_at, idempotency_key),
            )

    def refused(self, run: PendingRun, *, error: str) -> None:
        """Write down that a run will never be created, and hold its study, with the reason."""
        reason = _one_line(f"{run.flow}: {error}")
        with self._transaction() as connection:
            connection.execute(
                "UPDATE runs SET state = 'refused', attempts = attempts + 1, last_error = ? WHERE idempotency_key = ?",
                (_one_line(error), run.idempotency_key),
            )
            connection.execute(
                "UPDATE studies SET outcome = 'held', reason = ? WHERE study_id = ?", (reason, run.study_id)
            )

    def refuse_all(self, flow: str, *, error: str) -> int:
        """Do what ``refused`` does for every run of ``flow`` that is still to be created; return how many they were."""
        with self._transaction() as connection:
            connection.execute(
                "UPDATE studies SET outcome = 'held', reason = ? WHERE study_id IN "
                "(SELECT study_id FROM runs WHERE state = 'pending' AND flow = ?)",
                (_one_line(f"{flow}: {error}"), flow),
            )
            cursor = connection.execute(
                "UPDATE runs SET state = 'refused', last_error = ? WHERE state = 'pending' AND flow = ?",
                (_one_line(error), flow),
            )
            return cursor.rowcount

    def note_delay(self, flow: str, *, reason: str) -> None:
        """Write down why no run of ``flow`` can be created now, or none at all (``EVERY_FLOW``)."""
        with self._transaction() as connection:
            connection.execute("INSERT OR REPLACE INTO delays (flow, reason) VALUES (?, ?)", (flow, _one_line(reason)))

    def forget_delays(self, flow: str | None = None) -> None:
        """Write down that runs of ``flow`` can be created, or that this is to be found out anew for all."""
        with self._transaction() as connection:
            connection.execute("DELETE FROM delays WHERE flow = coalesce(?, flow)", (flow,))

    def studies(self, *, limit: int = 100) -> tuple[LedgerStudy, ...]:
        """Return the newest studies, newest first."""
        rows = self._read("SELECT * FROM studies ORDER BY study_id DESC LIMIT ?", limit)
        return tuple(self._study(row) for row in rows)

    def study(self, study_id: str) -> LedgerStudy | None:
        """Return one study, or None where it was never entered."""
        rows = self._read("SELECT * FROM studies WHERE study_id = ?", study_id)
        return self._study(rows[0]) if rows else None

    def received(self, *, since: datetime | None, until: datetime | None) -> Iterator[ReceivedStudy]:
        """Yield the studies whose first instance came from ``since`` on and before ``until``, in the order in which
        they were committed. Few are held in memory, and the ledger is free for others meanwhile.
        """
        last = ""
        while True:
            rows = self._read(
                "SELECT study_id, outcome FROM studies WHERE received_at >= ? AND received_at < ? AND study_id > ? "
                "ORDER BY study_id LIMIT ?",
                *(*_span(since, until), last, _PAGE),
            )
            for row in rows:
                yield ReceivedStudy(study_id=row["study_id"], outcome=row["outcome"])
            if len(rows) < _PAGE:
                return
            last = rows[-1]["study_id"]

    def count_received(self, *, since: datetime | None, until: datetime | None) -> int:
        """Return how many studies ``received`` yields."""
        (row,) = self._read(
            "SELECT count(*) AS number FROM studies WHERE received_at >= ? AND received_at < ?", *_span(since, until)
        )
        number: int = row["number"]
        return number

    def reprocessed(self, run: ReprocessedRun, *, study_id: str) -> None:
        """Write down that a run was made because a person asked for it. May be called twice for the same run."""
        with self._transaction() as connection:
            connection.execute(
                "INSERT OR IGNORE INTO reprocessed (flow_run_id, study_id, flow, request_id) VALUES (?, ?, ?, ?)",
                (run.flow_run_id, study_id, run.flow, run.request_id),
            )

    def studies_of(self, uid_hash: str) -> tuple[str, ...]:
        """Return the ids of the studies that have an instance of the StudyInstanceUID so hashed, newest first."""
        rows = self._read("SELECT study_id FROM study_uids WHERE uid_hash = ? ORDER BY study_id DESC", uid_hash)
        return tuple(row["study_id"] for row in rows)

    def without_uids(self) -> tuple[str, ...]:
        """Return the ids of all studies whose StudyInstanceUIDs were never entered, newest first."""
        rows = self._read(
            "SELECT study_id FROM studies WHERE NOT EXISTS "
            "(SELECT 1 FROM study_uids WHERE study_uids.study_id = studies.study_id) ORDER BY study_id DESC"
        )
        return tuple(row["study_id"] for row in rows)

    def enter_uids(self, study_id: str, uid_hashes: Collection[str]) -> None:
        """Enter the StudyInstanceUIDs of a study, hashed; it may have none."""
        with self._transaction() as connection:
            _enter_uids(connection, study_id, uid_hashes)

    def without_instances(self) -> tuple[str, ...]:
        """Return the ids of all studies whose SOP Instance UIDs were never entered, newest first."""
        rows = self._read(
            "SELECT study_id FROM studies WHERE NOT EXISTS "
            "(SELECT 1 FROM indexed_studies WHERE indexed_studies.study_id = studies.study_id) ORDER BY study_id DESC"
        )
        return tuple(row["study_id"] for row in rows)

    def enter_instances(self, study_id: str, uid_hashes: Collection[bytes]) -> None:
        """Enter the SOP Instance UIDs of a study, hashed; by them, ``instance_lookup`` finds it."""
        # Sorted: a table without row numbers is written in the order of its key.
        rows = [(uid_hash, study_id) for uid_hash in sorted(uid_hashes)]
        with self._transaction() as connection:
            connection.executemany("INSERT OR IGNORE INTO instances (uid_hash, study_id) VALUES (?, ?)", rows)
            connection.execute("INSERT OR IGNORE INTO indexed_studies (study_id) VALUES (?)", (study_id,))

    def use_uid_key(self, check_value: str) -> None:
        """Forget all hashes that were made with another key than the one that ``check_value`` stands for."""
        with self._transaction() as connection:
            if connection.execute("SELECT 1 FROM uid_key WHERE check_value = ?", (check_value,)).fetchone():
                return
            connection.execute("DELETE FROM study_uids")
            connection.execute("DELETE FROM instances")
            connection.execute("DELETE FROM indexed_studies")
            connection.execute("DELETE FROM uid_key")
            connection.execute("INSERT INTO uid_key (check_value) VALUES (?)", (check_value,))

    def _study(self, row: sqlite3.Row) -> LedgerStudy:
        runs = self._read(
            "SELECT *, (SELECT reason FROM delays WHERE delays.flow IN (runs.flow, ?) ORDER BY delays.flow LIMIT 1) "
            "AS delay FROM runs WHERE study_id = ? ORDER BY flow",
            *(EVERY_FLOW, row["study_id"]),
        )
        # In the order in which they were made: SQLite numbers rows as they come.
        reprocessed = self._read("SELECT * FROM reprocessed WHERE study_id = ? ORDER BY rowid", row["study_id"])
        return LedgerStudy(
            study_id=row["study_id"],
            received_at=datetime.fromisoformat(row["received_at"]),
            committed_at=datetime.fromisoformat(row["committed_at"]),
            decided_at=datetime.fromisoformat(row["decided_at"]) if row["decided_at"] else None,
            sender=row["sender"],
            instance_count=row["instance_count"],
            complete=bool(row["complete"]),
            released=bool(row["released"]),
            outcome=row["outcome"],
            reason=row["reason"],
            explanation=row["explanation"],
            runs=tuple(
                LedgerRun(
                    study_id=run["study_id"],
                    flow=run["flow"],
                    idempotency_key=run["idempotency_key"],
                    state=run["state"],
                    flow_run_id=run["flow_run_id"],
                    attempts=run["attempts"],
                    last_error=(run["state"] == "pending" and run["delay"]) or run["last_error"],
                )
                for run in runs
            ),
            reprocessed=tuple(
                ReprocessedRun(flow=run["flow"], flow_run_id=run["flow_run_id"], request_id=run["request_id"])
                for run in reprocessed
            ),
        )

    def _read(self, statement: str, *values: object) -> Sequence[sqlite3.Row]:
        with self._lock:
            return self._connection.execute(statement, values).fetchall()

    @contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        with self._lock:
            # IMMEDIATE: one that turns into a writer later can fail at once under WAL, whatever the time-out.
            self._connection.execute("BEGIN IMMEDIATE")
            try:
                yield self._connection
                self._connection.execute("COMMIT")
            except BaseException:
                # SQLite itself rolls back on some errors, a full disk among them (sqlite.org/lang_transaction.html).
                if self._connection.in_transaction:
                    self._connection.execute("ROLLBACK")
                raise


def _span(since: datetime | None, until: datetime | None) -> tuple[str, str]:
    return (_to_text(since) if since else _EARLIEST, _to_text(until) if until else _LATEST)


def _enter_uids(connection: sqlite3.Connection, study_id: str, uid_hashes: Collection[str]) -> None:
    connection.executemany(
        "INSERT OR IGNORE INTO study_uids (uid_hash, study_id) VALUES (?, ?)",
        [(uid_hash, study_id) for uid_hash in uid_hashes or (_NO_UID,)],
    )


def _pending_run(row: sqlite3.Row) -> PendingRun:
    return PendingRun(
        study_id=row["study_id"],
        flow=row["flow"],
        idempotency_key=row["idempotency_key"],
        request_json=row["request"],
        attempts=row["attempts"],
    )


def _to_text(moment: datetime) -> str:
    return moment.astimezone(UTC).isoformat()


def _one_line(text: str) -> str:
    return " ".join(text.split())[:_LONGEST_ERROR]
