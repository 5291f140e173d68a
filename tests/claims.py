"""Numbers of which no two test processes on this machine hold the same one at a time."""

from __future__ import annotations

import socket
from collections.abc import Iterable


def claim(kind: str, numbers: Iterable[int]) -> tuple[int, socket.socket]:
    """Return the first of ``numbers`` that nobody holds, and what holds it until it is closed, or its process ends."""
    for number in numbers:
        holder = socket.socket(socket.AF_UNIX)
        try:
            # A name of Linux's abstract namespace: it is gone with its holder, and leaves no file.
            holder.bind(f"\0dicomflow-tests-{kind}-{number}")
        except OSError:
            holder.close()
        else:
            return number, holder
    raise RuntimeError(f"no {kind} is free: other test processes hold them")
