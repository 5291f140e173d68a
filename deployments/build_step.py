"""The build step of a ``prefect.yaml`` of ours: what has to be there before ``prefect deploy`` makes a deployment."""

from __future__ import annotations

import functools
import os
from collections.abc import Sequence

from prefect.client.orchestration import get_client

from deployments.apply import make_pools
from deployments.prefect_yaml import BRACES_OUTPUT, INSTANCE_OUTPUT
from flows_engine.handoff.installation import instance_id
from flows_engine.handoff.site_settings import load_site_settings


def prepare(*, pools: Sequence[str]) -> dict[str, str]:
    """Make what is missing of ``pools`` and their queues; return what Prefect puts in the place of our placeholders.

    The queues come before the deployments, because Prefect would make them on the fly with the next free priority.
    Prefect runs the step for each deployment; the server is asked once.
    """
    _make_once(tuple(pools))
    settings = load_site_settings(os.environ).settings
    return {BRACES_OUTPUT: "{{", INSTANCE_OUTPUT: instance_id(settings.data_dir)}


@functools.cache
def _make_once(pools: tuple[str, ...]) -> None:
    with get_client(sync_client=True) as client:
        make_pools(client, pools)
