"""Hearing from Prefect's server of runs that begin to wait, so that a worker need not ask all the time."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Callable
from typing import Final
from uuid import UUID

import anyio
from prefect.events.clients import get_events_subscriber
from prefect.events.filters import EventAnyResourceFilter, EventFilter, EventNameFilter

logger = logging.getLogger(__name__)

# The states in which a run may be due at once.
_BEGINS_TO_WAIT: Final = EventNameFilter(
    name=["prefect.flow-run.Scheduled", "prefect.flow-run.AwaitingRetry", "prefect.flow-run.Resuming"]
)
_PAUSE_SECONDS: Final = 10.0


async def announced_runs(pool_id: Callable[[], UUID]) -> AsyncIterator[None]:
    """Yield whenever the server says that a run waits in a work pool. Does not end, and raises nothing.

    What is said while no connection stands is not heard: a worker still has to ask now and then. ``pool_id`` may raise
    ``RuntimeError`` while the pool is not known yet.
    """
    while True:
        try:
            pool = EventAnyResourceFilter(id=[f"prefect.work-pool.{pool_id()}"])
            async with get_events_subscriber(EventFilter(event=_BEGINS_TO_WAIT, any_resource=pool)) as events:
                async for _ in events:
                    yield
        # Edge of a task of its own: whatever keeps the server from telling, the worker asks meanwhile.
        except Exception as error:  # noqa: BLE001
            logger.debug("no events from the server (%s); trying again", type(error).__name__)
        await anyio.sleep(_PAUSE_SECONDS)
