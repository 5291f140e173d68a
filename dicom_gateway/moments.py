"""A moment as a person writes it: ``30d`` ago, a day, or a time of day. Pure but for the time zone of this host."""

from __future__ import annotations

import re
from datetime import datetime, timedelta
from typing import Final

_AGO: Final = re.compile(r"([0-9]{1,6})\s*([mhdw])")
_UNITS: Final = {"m": "minutes", "h": "hours", "d": "days", "w": "weeks"}


def read_moment(written: str, *, now: datetime) -> datetime:
    """Return the moment that a person means: so long before ``now`` (``90m``, ``12h``, ``30d``, ``2w``), or a date with
    or without a time (ISO 8601). What names no time zone is meant in that of this host.

    Raises ``ValueError`` with a reason and a way out.
    """
    text = written.strip()
    try:
        if ago := _AGO.fullmatch(text):
            return now - timedelta(**{_UNITS[ago[2]]: int(ago[1])})
        moment = datetime.fromisoformat(text)
        # A moment without a zone is the host's; near the ends of the calendar there is none to be had.
        return moment if moment.tzinfo else moment.astimezone()
    except (ValueError, OverflowError, OSError):
        raise ValueError("is no moment; write 12h or 30d (ago), or 2024-05-01, or 2024-05-01T14:30") from None
