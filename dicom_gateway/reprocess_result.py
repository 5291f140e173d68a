"""What came of a request: counts for all of it, rows for the first few hundred. Pure; holds opaque ids only."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, Literal

What = Literal["made", "under way", "would run", "does not match", "undecided", "not processed", "refused"]

MOST_ROWS: Final = 500
_MOST_NAMED: Final = 3
_WRONG: Final[tuple[What, ...]] = ("undecided", "refused", "not processed")
_LAST: Final = {"does not match"}
"""What a table shows only if there is room behind everything else."""


@dataclass(frozen=True, kw_only=True)
class Row:
    """What became of one flow on one study. ``flow`` is empty where the study as a whole is meant."""

    study_id: str
    what: What
    flow: str = ""
    run_id: str = ""
    reason: str = ""


class ReprocessResult:
    """Takes in what happens, one thing after the other; what it keeps does not grow with the number of studies."""

    def __init__(self, *, in_bulk: bool, dry_run: bool) -> None:
        self._in_bulk = in_bulk
        self._dry_run = dry_run
        self._counts: Counter[What] = Counter()
        self._studies_with_runs = 0
        self._last_with_runs = ""
        self._without_match = 0
        self._firsts: dict[What, list[Row]] = {}
        self._rows: list[Row] = []
        self._last_rows: list[Row] = []
        self._other_receptions: tuple[str, ...] = ()
        self.studies = 0
        """How many studies were looked at."""
        self.held = 0
        """How many were passed over, because they wait for a person."""
        self.not_decided = 0
        """How many were passed over, because the gateway is about to process them anyway."""

    def add(self, row: Row) -> None:
        """Take in what became of one flow on one study, or of a study as a whole."""
        self._counts[row.what] += 1
        if row.what in {"made", "under way", "would run"} and row.study_id != self._last_with_runs:
            self._studies_with_runs += 1
            self._last_with_runs = row.study_id
        named = self._firsts.setdefault(row.what, [])
        if len(named) < _MOST_NAMED:
            named.append(row)
        rows = self._last_rows if row.what in _LAST else self._rows
        if len(rows) < MOST_ROWS:
            rows.append(row)

    def without_match(self) -> None:
        """Take in that no flow runs on a study."""
        self._without_match += 1

    def only_newest_of(self, other_receptions: tuple[str, ...]) -> None:
        """Take in that a StudyInstanceUID was received several times, and these studies were left out."""
        self._other_receptions = other_receptions

    @property
    def made(self) -> int:
        """How many runs were made, an earlier attempt of the same request included."""
        return self._counts["made"]

    @property
    def failed(self) -> bool:
        """Whether a person has to look: what was asked for by name could not be done, or, in bulk, nothing could be."""
        return any(self._counts[what] for what in _WRONG) and (not self._in_bulk or not self._studies_with_runs)

    def message(self) -> str:
        """Return it all in one line."""
        parts = self._runs()
        if self._counts["under way"]:
            already = self._named(
                "under way", lambda row: f"{row.flow}{row.run_id and ' as run '}{row.run_id}, {row.reason}"
            )
            parts.append(f"already under way: {already}")
        if self._without_match and self._in_bulk:
            parts.append(f"{_count(self._without_match, 'study matches', 'studies match')} no flow")
        elif self._without_match:
            parts.append("no run was made: no flow matches; `dicomflow explain` says why")
        passed_over = [(self.held, "held"), (self.not_decided, "not decided on yet")]
        if told := [f"{number} {why}" for number, why in passed_over if number]:
            parts.append(f"passed over: {', '.join(told)}")
        parts += [
            f"{what}: {self._named(what, lambda row: f'{row.flow} ({row.reason})' if row.flow else row.reason)}"
            for what in _WRONG
            if self._counts[what]
        ]
        if self._other_receptions:
            others = ", ".join(self._other_receptions[:_MOST_NAMED])
            parts.append(f"this is the newest of {len(self._other_receptions) + 1} receptions; others are {others}")
        return "; ".join(parts)

    def table(self) -> list[dict[str, str]]:
        """Return the first rows, for people and programs."""
        rows = (*self._rows, *self._last_rows)[:MOST_ROWS]
        return [
            {
                "study": row.study_id,
                "flow": row.flow,
                "what": row.what,
                "run": row.run_id,
                "reason": row.reason,
            }
            for row in rows
        ]

    @property
    def row_count(self) -> int:
        """How many rows the table would have if it were not cut."""
        return self._counts.total()

    def _runs(self) -> list[str]:
        if self._in_bulk:
            studies = f"for {self._studies_with_runs} of {_count(self.studies, 'study', 'studies')}"
            if self._dry_run:
                return [f"dry run: {_count(self._counts['would run'], 'run', 'runs')} would be made {studies}"]
            return [f"{_count(self._counts['made'], 'run', 'runs')} made {studies}"]
        if self._counts["would run"]:
            return [f"dry run: {self._named('would run', lambda row: row.flow)} would run"]
        if self._counts["made"]:
            return [f"made {self._named('made', lambda row: f'{row.flow} as run {row.run_id}')}"]
        return []

    def _named(self, what: What, told: Callable[[Row], str]) -> str:
        """Return the first few in words, and how many there are besides."""
        named = [told(row) for row in self._firsts.get(what, ())]
        rest = self._counts[what] - len(named)
        return ", ".join([*named, *([f"and {rest} more"] if rest else [])])


def _count(number: int, one: str, several: str) -> str:
    return f"{number} {one if number == 1 else several}"
