"""A worker of this host: takes up what an earlier one left behind, then becomes a Prefect worker of our type."""

from __future__ import annotations

import os
import sys
from typing import Final

from prefect.client.orchestration import get_client
from prefect.exceptions import ObjectNotFound

from deployments.errors import CommandError
from deployments.server_errors import told_in_one_line
from deployments.stranded_runs import resume_stranded_runs
from deployments.successor import finish_moves
from dicom_gateway.run_history import PrefectRunHistory
from flows_engine.definition.naming import GATEWAY_POOL, WORKER_TYPE
from flows_engine.wiring import site_engine

# Pools of an earlier version are of Prefect's type, which asks the same of a worker. A pool keeps its type for good.
_SERVED_TYPES: Final = (WORKER_TYPE, "process")


class PoolMissingError(CommandError):
    """Prefect has no such work pool. A worker would make it, without its queues and their priorities."""


class PoolOfAnotherTypeError(CommandError):
    """Runs of this pool are not started as processes of a host; the message says which worker starts them."""


def serve(*, pool: str, name: str, slots: int) -> None:
    """Become a worker of ``pool`` that runs up to ``slots`` flow runs at once. Does not return.

    Raises ``ServerUnreachableError``, ``PoolMissingError`` and ``PoolOfAnotherTypeError``.
    """
    engine = site_engine()
    with get_client(sync_client=True) as client, told_in_one_line(client.api_url):
        try:
            pool_type = client.read_work_pool(pool).type
        except ObjectNotFound:
            raise PoolMissingError(
                f"Prefect has no work pool {pool!r}; `dicomflow deploy` makes the pools that the definitions ask for"
            ) from None
        if pool_type not in _SERVED_TYPES:
            raise PoolOfAnotherTypeError(
                f"work pool {pool!r} is of type {pool_type!r}; `prefect worker start --pool {pool}` serves it"
            )
        finish_moves(client, pool=pool)
        # The gateway's own runs start no container, and its host may have no engine to ask.
        runs_models = pool != GATEWAY_POOL
        resume_stranded_runs(
            client,
            pool=pool,
            worker_name=name,
            runs_folder=engine.runs,
            remove_containers=lambda run_id: engine.remove_containers(run_id=run_id) if runs_models else 0,
            when_cancelled=PrefectRunHistory(client).withdraw,
        )
    worker = ("worker", "start", "--pool", pool, "--type", WORKER_TYPE, "--name", name, "--limit", str(slots))
    os.execv(sys.executable, [sys.executable, "-m", "prefect", *worker])  # noqa: S606
