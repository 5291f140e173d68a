"""What a run did, kept where people look for it: in its folder, and as an artifact of the run."""

from __future__ import annotations

from prefect import get_run_logger

from flows_engine.definition.schema import FlowDefinition
from flows_engine.errors import EngineError
from flows_engine.run_record import as_markdown
from flows_engine.tasks.artifact import show
from flows_engine.tasks.unforeseen import kind_of
from flows_engine.wiring import site_engine


def give_account(definition: FlowDefinition, *, run_id: str, study_id: str, state: str) -> None:
    """Keep what the run did, up to the ``state`` that it ends in. A run does not fail because it cannot be kept."""
    logger = get_run_logger()
    try:
        record = site_engine().record(definition, run_id=run_id, study_id=study_id, state=state)
    except Exception as error:  # noqa: BLE001 - whatever it is, what was done is done
        logger.warning("what the run did is not kept: %s", error if isinstance(error, EngineError) else kind_of(error))
    else:
        show(as_markdown(record), description="What was run, and how", logger=logger)
