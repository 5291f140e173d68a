"""What a thread gets that waits for the Docker engine -> the thread that also looks whether its run ends."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Final, TypeVar

from flows_engine.errors import RunHaltedError

LOOK_SECONDS: Final = 0.5
"""How often a thread that waits looks whether its run ends."""

_Item = TypeVar("_Item")


def get(items: queue.Queue[_Item], seconds: float, is_halted: Callable[[], bool]) -> _Item:
    """Return the next item. Raises ``queue.Empty`` after ``seconds``, and ``RunHaltedError``."""
    deadline = time.monotonic() + seconds
    while (remaining_seconds := deadline - time.monotonic()) > 0:
        if is_halted():
            raise RunHaltedError
        with suppress(queue.Empty):
            return items.get(timeout=min(remaining_seconds, LOOK_SECONDS))
    raise queue.Empty


def put(items: queue.Queue[_Item], item: _Item, abandoned: threading.Event) -> bool:
    """Hand ``item`` on as soon as there is room; return False where nobody wants it any more."""
    while not abandoned.is_set():
        with suppress(queue.Full):
            items.put(item, timeout=LOOK_SECONDS)
            return True
    return False


def handed_over(
    items: Iterator[_Item], *, limit: int, patience_seconds: float, is_halted: Callable[[], bool]
) -> Iterator[_Item]:
    """Yield what ``items`` yields in a thread of its own, which is at most ``limit`` items ahead.

    Raises ``queue.Empty`` where none comes for ``patience_seconds``, ``RunHaltedError``, and what ``items`` raises.
    """
    waiting: queue.Queue[tuple[_Item] | Exception | None] = queue.Queue(maxsize=limit)
    abandoned = threading.Event()

    def take() -> None:
        try:
            for item in items:
                if not put(waiting, (item,), abandoned):
                    return
        except Exception as error:  # noqa: BLE001 - the outer edge of a thread: whoever waits has to be told
            put(waiting, error, abandoned)
        else:
            put(waiting, None, abandoned)

    threading.Thread(target=take, daemon=True).start()
    try:
        while (found := get(waiting, patience_seconds, is_halted)) is not None:
            if isinstance(found, Exception):
                raise found
            yield found[0]
    finally:
        abandoned.set()
