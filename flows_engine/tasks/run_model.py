"""One model of a run, as a Prefect task. Its result is kept, so that a retry of the run does not run it again."""

from __future__ import annotations

from prefect import get_run_logger, task

from flows_engine.definition.schema import FlowDefinition
from flows_engine.halting import is_halted
from flows_engine.run_step import StepResult
from flows_engine.tasks.artifact import show
from flows_engine.tasks.retrying import BY_PARAMETERS, may_pass
from flows_engine.tasks.unforeseen import unforeseen_in_one_line
from flows_engine.wiring import site_engine


@task(
    name="run model",
    persist_result=True,
    cache_policy=BY_PARAMETERS,
    result_serializer="json",
    retry_condition_fn=may_pass,
)
def run_model(definition: FlowDefinition, *, step: int, run_id: str, study_id: str) -> StepResult:
    """Run model number ``step`` (counted from 0). Raises an ``EngineError``."""
    logger = get_run_logger()
    with unforeseen_in_one_line(logger):
        result = site_engine().run_step(
            definition, step=step, run_id=run_id, study_id=study_id, logger=logger, is_halted=is_halted
        )
    if result.result:
        # Without its backticks the text cannot end the block, and be taken for Markdown.
        block = result.result.replace("`", "\\u0060")
        show(f"```json\n{block}\n```", description=f"What model {step + 1} says of its result", logger=logger)
    return result
