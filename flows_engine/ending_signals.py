"""Which signals, as a Docker engine writes them, end a container. Pure."""

from __future__ import annotations

import re
import signal
from typing import Final

_REAL_TIME: Final = re.compile(r"RT(MIN|MAX)(?:([+-])(\d{1,2}))?")
# As the engine counts them, which is on Linux; on this host they may have other numbers.
_FIRST_REAL_TIME: Final = 34
_LAST_REAL_TIME: Final = 64


def ending_signals(stop_signal: str | None) -> frozenset[int]:
    """Return the signals that end a container whose own one, by which it is stopped, is ``stop_signal``."""
    own = signal_number(stop_signal or "")
    return frozenset({int(signal.SIGKILL), int(signal.SIGTERM)} | ({own} if own is not None else set()))


def signal_number(text: str) -> int | None:
    """Return the number of a signal that is written as ``15``, ``TERM`` or ``SIGTERM``; None where it is none."""
    if text.isascii() and text.isdigit():
        return int(text)
    name = text.upper().removeprefix("SIG")
    if real_time := _REAL_TIME.fullmatch(name):
        end, sign, distance = real_time.groups(default="0")
        start = _FIRST_REAL_TIME if end == "MIN" else _LAST_REAL_TIME
        return start + (-int(distance) if sign == "-" else int(distance))
    try:
        return int(signal.Signals[f"SIG{name}"])
    except KeyError:
        return None
