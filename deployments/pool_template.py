"""How a worker starts a run of ours: the base job template of every work pool that we make."""

from __future__ import annotations

from typing import Any, Final

# Prefect checks every run against a pool's variables, and their schema against its meta schema, when the run is made.
# The six variables of the worker's own template are half of what making a run costs (Prefect 3.8); the one that
# a site has a use for is kept.
JOB_TEMPLATE: Final[dict[str, Any]] = {
    "job_configuration": {
        "env": "{{ env }}",
        # Prefect's API has the log of a run; the worker's console need not have it, too.
        "stream_output": False,
    },
    "variables": {
        "type": "object",
        "properties": {
            "env": {
                "type": "object",
                "title": "Environment Variables",
                "description": "What the environment of a run has besides that of its worker.",
                "additionalProperties": {"type": "string"},
            }
        },
    },
}
