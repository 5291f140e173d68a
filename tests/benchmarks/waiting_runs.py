"""What workers and people ask of a server on which runs wait."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

import anyio
import httpx
from prefect.client.orchestration import PrefectClient
from prefect.workers.base import BaseWorker
from prefect.workers.process import ProcessWorker

from flows_engine.worker.study_worker import StudyWorker

_SLOTS = 4
_PAGE = 50


@contextmanager
def questions(api_url: str, *, pool: str) -> Iterator[Mapping[str, Callable[[], object]]]:
    """Give what is asked of the server again and again, by name; a call asks once, and reads the answer."""
    with asyncio.Runner() as runner:
        client = PrefectClient(api_url)
        runner.run(client.__aenter__())
        try:
            with httpx.Client(base_url=api_url, timeout=60) as http:

                def ask(path: str, body: Mapping[str, object]) -> object:
                    return http.post(path, json=body).raise_for_status().json()

                newest = {"sort": "START_TIME_DESC", "limit": _PAGE, "page": 1}
                waiting = {"flow_runs": {"state": {"type": {"any_": ["SCHEDULED", "PENDING"]}}}}
                idle, busy, stock = (
                    runner.run(_worker(kind, client, pool=pool, busy=busy))
                    for kind, busy in ((StudyWorker, False), (StudyWorker, True), (ProcessWorker, True))
                )
                yield {
                    f"poll of our worker, {_SLOTS} slots free": lambda: runner.run(idle._get_scheduled_flow_runs()),
                    "poll of our worker, no slot free": lambda: runner.run(busy._get_scheduled_flow_runs()),
                    "poll of Prefect's worker": lambda: runner.run(stock._get_scheduled_flow_runs()),
                    f"a page of {_PAGE} runs, as the UI asks": lambda: ask("/flow_runs/paginate", newest),
                    "how many runs wait": lambda: ask("/flow_runs/count", waiting),
                }
        finally:
            runner.run(client.__aexit__(None, None, None))


async def _worker(kind: type[BaseWorker], client: PrefectClient, *, pool: str, busy: bool) -> BaseWorker:
    """Return a worker that asks as one does that runs, but whose runs are nobody's."""
    worker = kind(work_pool_name=pool)
    worker._client = client
    worker._limiter = anyio.CapacityLimiter(_SLOTS)
    for slot in range(_SLOTS if busy else 0):
        worker._limiter.acquire_on_behalf_of_nowait(slot)
    return worker
