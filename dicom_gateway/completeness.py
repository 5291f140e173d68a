"""Is a group complete, or when to ask again? Pure: the clock is an argument."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Waiting:
    """How long a group is waited for, in seconds after its last data."""

    idle_seconds: float
    incomplete_seconds: float
    """Where the last association that fed it was not released: the sender may come again with the rest."""


@dataclass(frozen=True, kw_only=True)
class GroupState:
    """What is known of a group. Moments are seconds since 1970."""

    last_data_at: float
    is_complete: bool
    """Whether the last association that fed it was released."""
    is_fed: bool
    """Whether an association that feeds it is open."""


def closes_at(state: GroupState, waiting: Waiting, *, now: float) -> float:
    """Return when a group is to be closed, or asked about again; a moment that is not after ``now`` closes it.

    A group is never closed while an association feeds it. A clock that was set back does not keep it open for longer
    than a whole wait.
    """
    last = min(state.last_data_at, now)
    if state.is_fed:
        return now + max(waiting.idle_seconds, 1.0)
    if state.is_complete:
        return last + waiting.idle_seconds
    return last + max(waiting.idle_seconds, waiting.incomplete_seconds)
