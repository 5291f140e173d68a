"""A look at the results of a run before they are sent, as a Prefect task. A retry of the run looks again."""

from __future__ import annotations

from prefect import get_run_logger, task

from flows_engine.definition.schema import FlowDefinition
from flows_engine.run_step import StepResult
from flows_engine.tasks.retrying import may_pass
from flows_engine.tasks.unforeseen import unforeseen_in_one_line
from flows_engine.wiring import site_engine


@task(name="check output", task_run_name="check output", persist_result=False, retry_condition_fn=may_pass)
def check_output(definition: FlowDefinition, last: StepResult, *, run_id: str, study_id: str) -> None:
    """See whether what ``last`` left is what the definition expects. Raises an ``EngineError``."""
    logger = get_run_logger()
    with unforeseen_in_one_line(logger):
        site_engine().check_output(
            definition, output_dir=last.output_dir, run_id=run_id, study_id=study_id, logger=logger
        )
