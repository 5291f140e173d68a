"""A run that a person made by Prefect's form or command is found as one of the gateway's: by its name and its tag."""

from __future__ import annotations

from uuid import UUID

from prefect import runtime
from prefect.client.orchestration import get_client

from flows_engine.definition import naming
from flows_engine.handoff.run_request import is_study_id


def be_found(definition_name: str, study_id: str) -> None:
    """Give this run the name and the tag that runs of a study have, unless it has them."""
    tag = naming.study_tag(study_id)
    tags = list(runtime.flow_run.tags)
    # Anything else was typed, and may be a patient's name: it is not to stand in more places.
    if tag in tags or not is_study_id(study_id):
        return
    with get_client(sync_client=True) as client:
        client.update_flow_run(
            UUID(str(runtime.flow_run.id)), name=naming.run_name(definition_name, study_id), tags=[*tags, tag]
        )
