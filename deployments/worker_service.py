"""A worker of this host: takes up what an earlier one left behind, then becomes Prefect's own process worker."""

from __future__ import annotations

import os
import sys

from prefect.client.orchestration import get_client
from prefect.exceptions import ObjectNotFound

from deployments.errors import CommandError
from deployments.server_errors import told_in_one_line
from deployments.stranded_runs import resume_stranded_runs
from deployments.successor import finish_moves
from dicom_gateway.run_history import PrefectRunHistory
from flows_engine.definition.naming import GATEWAY_POOL
from flows_engine.wiring import site_engine


class PoolMissingError(CommandError):
    """Prefect has no such work pool. A worker would make it, without its queues and their priorities."""


def serve(*, pool: str, name: str, slots: int) -> None:
    """Become a worker of ``pool`` that runs up to ``slots`` flow runs at once. Does not return.

    Raises ``ServerUnreachableError`` and ``PoolMissingError``.
    """
    engine = site_engine()
    with get_client(sync_client=True) as client, told_in_one_line(client.api_url):
        try:
            client.read_work_pool(pool)
        except ObjectNotFound:
            raise PoolMissingError(
                f"Prefect has no work pool {pool!r}; `dicomflow deploy` makes the pools that the definitions ask for"
            ) from None
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
    worker = ("worker", "start", "--pool", pool, "--type", "process", "--name", name, "--limit", str(slots))
    os.execv(sys.executable, [sys.executable, "-m", "deployments.study_worker", *worker])  # noqa: S606
