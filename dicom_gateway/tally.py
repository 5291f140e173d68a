"""What has come in, counted: in the process that receives, from one message of differences to the next, and in the
gateway as their sum.

Counts carry no text of a peer, only words of ours: their number is bounded, and they name nobody.
"""

from __future__ import annotations

import threading
from bisect import bisect_left
from collections import Counter
from collections.abc import Mapping
from typing import Annotated, Final, Literal

from pydantic import BaseModel, ConfigDict, Field

Refusal = Literal["handshake", "no-request", "negotiation", "credentials", "media-type", "malformed", "peer", "busy"]
"""Why a connection led to no association, or a request over HTTP to none of its instances being read."""
Answer = Literal["stored", "out-of-resources", "does-not-match", "cannot-understand", "failure"]
"""What a sender was told of an instance, by the class of the status (PS3.4 table B.2-1)."""

LATENCY_BOUNDS_SECONDS: Final = (
    *(0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0, 60.0),
)
_LATENCIES: Final = len(LATENCY_BOUNDS_SECONDS) + 1
_SUCCESS: Final = 0x0000
_ANSWERS_BY_HIGH_BYTE: Final[Mapping[int, Answer]] = {
    0xA7: "out-of-resources",
    0xA9: "does-not-match",
    **dict.fromkeys(range(0xC0, 0xD0), "cannot-understand"),
}
_Count = Annotated[int, Field(ge=0)]


class Counts(BaseModel):
    """So much of everything. Nothing is known of it where it comes from another process, hence the checks."""

    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)

    accepted: _Count = 0
    refused: dict[Refusal, _Count] = Field(default_factory=dict)
    answers: dict[Answer, _Count] = Field(default_factory=dict)
    bytes_stored: _Count = 0
    latencies: Annotated[tuple[_Count, ...], Field(min_length=_LATENCIES, max_length=_LATENCIES)] = (0,) * _LATENCIES
    """Between one bound and the next; the last is beyond them all."""
    seconds: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 0.0
    """All latencies together."""


class Tally:
    """Counts up. Safe to use from several threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._clear()

    def accepted(self) -> None:
        """Count an association that was accepted, or a request over HTTP whose instances are read."""
        with self._lock:
            self._accepted += 1

    def refused(self, reason: Refusal) -> None:
        """Count one that was not."""
        with self._lock:
            self._refused[reason] += 1

    def answered(self, status: int, size_bytes: int, seconds: float | None = None) -> None:
        """Count an instance that was answered with a DIMSE status, ``seconds`` after the first byte of its request."""
        with self._lock:
            self._answers[status] = self._answers.get(status, 0) + 1
            if status == _SUCCESS:
                self._bytes_stored += size_bytes
            if seconds is not None:
                self._seconds += seconds
                self._latencies[bisect_left(LATENCY_BOUNDS_SECONDS, seconds)] += 1

    def take(self) -> Counts | None:
        """Return what was counted since the last time, None where that is nothing."""
        with self._lock:
            if not (self._accepted or self._refused or self._answers):
                return None
            counts = self._counts()
            self._clear()
            return counts

    def add(self, counts: Counts) -> None:
        """Count all that somebody else has counted."""
        with self._lock:
            self._accepted += counts.accepted
            self._bytes_stored += counts.bytes_stored
            self._seconds += counts.seconds
            self._refused.update(counts.refused)
            self._summed.update(counts.answers)
            for place, count in enumerate(counts.latencies):
                self._latencies[place] += count

    def counts(self) -> Counts:
        """Return all that was counted and not taken."""
        with self._lock:
            return self._counts()

    def _counts(self) -> Counts:
        answers = Counter(self._summed)
        for status, count in self._answers.items():
            answers[_answer(status)] += count
        return Counts(
            accepted=self._accepted,
            refused=dict(self._refused),
            answers=dict(answers),
            bytes_stored=self._bytes_stored,
            latencies=tuple(self._latencies),
            seconds=self._seconds,
        )

    def _clear(self) -> None:
        self._accepted = self._bytes_stored = 0
        self._seconds = 0.0
        self._refused: Counter[Refusal] = Counter()
        self._answers: dict[int, int] = {}
        self._summed: Counter[Answer] = Counter()
        self._latencies = [0] * _LATENCIES


def _answer(status: int) -> Answer:
    if status == _SUCCESS:
        return "stored"
    return _ANSWERS_BY_HIGH_BYTE.get(status >> 8, "failure")
