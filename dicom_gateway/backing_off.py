"""How long Prefect is left alone after it failed. Pure: the clock is an argument."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Final

LONGEST_WAIT_SECONDS: Final = 10.0
_FIRST_WAIT_SECONDS: Final = 0.5


def wait_seconds(attempts: int) -> float:
    """Return how long to wait after ``attempts`` failures in a row: it doubles, up to ten seconds."""
    return float(min(LONGEST_WAIT_SECONDS, _FIRST_WAIT_SECONDS * 2 ** min(attempts, 16)))


@dataclass(frozen=True, kw_only=True)
class Pause:
    """A time of failures that no success has ended yet. When ``until`` (Unix time) is over, one run may try.

    After the first failure that is at once: whatever failed may have been this one run.
    """

    reason: str
    since: float
    until: float
    failures: int = 1

    def lasts(self, *, now: float) -> bool:
        """Tell whether nothing may try yet. One that seems longer than any is over: the clock was set back since."""
        return now < self.until <= now + LONGEST_WAIT_SECONDS


def after_failure(pause: Pause | None, *, reason: str, now: float) -> Pause:
    """Return the pause that follows a failure. What was tried together fails together, and counts once."""
    if pause is None:
        return Pause(reason=reason, since=now, until=now)
    if pause.lasts(now=now):
        return replace(pause, reason=reason)
    return replace(pause, reason=reason, failures=pause.failures + 1, until=now + wait_seconds(pause.failures - 1))
