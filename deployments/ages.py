"""How long something has lasted, for a person. Pure."""

from __future__ import annotations

from datetime import datetime
from typing import Final

_UNITS: Final = ((86_400, "d"), (3_600, "h"), (60, "min"))


def age_seconds(since: datetime, *, now: datetime) -> int:
    """Return the whole seconds from ``since`` to ``now``; 0 where clocks that differ put it into the future."""
    return max(0, int((now - since).total_seconds()))


def age(seconds: int) -> str:
    """Return a duration in its largest unit: ``12 s``, ``4 min``, ``3 h``, ``2 d``; from two units on of that."""
    for size, unit in _UNITS:
        if seconds >= 2 * size:
            return f"{seconds // size} {unit}"
    return f"{seconds} s"
