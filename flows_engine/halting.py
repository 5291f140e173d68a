"""Telling the threads of a run that it ends now. A signal reaches the main thread only."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Final

_halt: Final[ContextVar[threading.Event | None]] = ContextVar("halt", default=None)


@contextmanager
def threads_halted_on_error() -> Iterator[None]:
    """See to it that ``is_halted`` holds, in all threads that are given this context, once the block was left by an
    exception.
    """
    halt = threading.Event()
    before = _halt.set(halt)
    try:
        yield
    except BaseException:
        halt.set()
        raise
    finally:
        _halt.reset(before)


def is_halted() -> bool:
    """Tell whether the run that this thread works for ends now."""
    halt = _halt.get()
    return halt is not None and halt.is_set()
