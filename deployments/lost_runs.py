"""Runs whose host is gone for good: Prefect makes them Crashed when their heartbeats stay away.

A worker that starts takes up what its own host left behind. Where none starts, nobody would say that a run is dead, and
it would hold its place in its flow's limit for ever. So an automation of Prefect's does.
"""

from __future__ import annotations

from typing import Any, Final

from deployments import server_api
from deployments.server_api import Connection
from flows_engine.definition.naming import FLOW_NAME, HOST_LOST, REPROCESS_FLOW_NAME

AUTOMATION_NAME: Final = "DicomFlow: runs whose host is gone"
# Three heartbeats and a little; see PREFECT_DEFAULTS of services.py.
_PATIENCE_SECONDS: Final = 100
_HEARTBEAT: Final = "prefect.flow-run.heartbeat"
# What says as well that a run needs no heart any more.
_AT_REST: Final = ("Completed", "Failed", "Crashed", "Cancelled", "Cancelling", "Scheduled", "AwaitingRetry", "Paused")


def lost_runs_automation(*, patience_seconds: float = _PATIENCE_SECONDS) -> dict[str, Any]:
    """Return the automation that makes a run Crashed ``patience_seconds`` after the last that was heard of it."""
    return {
        "name": AUTOMATION_NAME,
        "description": "A run that has said nothing for a while is Crashed."
        " It goes on when a worker of its host starts.",
        "trigger": {
            "type": "event",
            "posture": "Proactive",
            "after": [_HEARTBEAT],
            "expect": [_HEARTBEAT, *(f"prefect.flow-run.{name}" for name in (*_AT_REST, HOST_LOST))],
            "match": {"prefect.resource.id": "prefect.flow-run.*"},
            "match_related": {
                "prefect.resource.role": "flow",
                "prefect.resource.name": [FLOW_NAME, REPROCESS_FLOW_NAME],
            },
            "for_each": ["prefect.resource.id"],
            "threshold": 1,
            "within": patience_seconds,
        },
        "actions": [
            {
                "type": "change-flow-run-state",
                "state": "CRASHED",
                "name": HOST_LOST,
                "message": "nothing was heard of it any more: its host is gone, or cut off. It goes on when a worker"
                " starts there; a retry runs what is missing elsewhere, where the folders are shared",
            }
        ],
    }


def watch_for_lost_runs(server: Connection) -> bool:
    """Make the automation if there is none; return whether it was made. One that a person changed is left as it is."""
    if server_api.has_automation(server, AUTOMATION_NAME):
        return False
    server_api.create_automation(server, lost_runs_automation())
    return True
