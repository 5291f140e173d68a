"""Runs that wait while the definition of their flow is gone: they say so, by a tag, until it comes back.

They are run all the same, since a run carries its definition.
"""

from __future__ import annotations

from deployments import server_api
from deployments.server_api import Connection
from deployments.server_errors import unless_it_is_gone
from flows_engine.definition.naming import GONE_TAG


def mark_waiting_runs(server: Connection, deployment_id: str) -> None:
    """Have every run of a deployment that waits say that its definition is gone. May be done again at any time."""
    for run in list(server_api.waiting_runs(server, deployment_id)):
        if GONE_TAG not in run.tags:
            with unless_it_is_gone():
                server_api.retag_run(server, run.id, [*run.tags, GONE_TAG])


def unmark_runs(server: Connection, deployment_id: str) -> None:
    """Take back what ``mark_waiting_runs`` did."""
    for run in list(server_api.runs_with_tag(server, deployment_id, GONE_TAG)):
        with unless_it_is_gone():
            server_api.retag_run(server, run.id, [tag for tag in run.tags if tag != GONE_TAG])
