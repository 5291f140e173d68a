"""Several requests at a time, for what a server does in many small steps."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import Final, TypeVar

# Prefect's server works on one request at a time for the most part; a few more keep it from waiting for its database.
_AT_ONCE: Final = 4

Item = TypeVar("Item")
Result = TypeVar("Result")


def side_by_side(do: Callable[[Item], Result], items: Iterable[Item]) -> list[Result]:
    """Do something with every item, and return what came of each, in their order.

    Raises the first error, once all have been tried.
    """
    with ThreadPoolExecutor(_AT_ONCE) as pool:
        doing = [pool.submit(do, item) for item in items]
    return [done.result() for done in doing]
