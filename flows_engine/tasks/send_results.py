"""The results of a run to one destination, as a Prefect task. A further attempt sends what has not arrived."""

from __future__ import annotations

from prefect import get_run_logger, task

from flows_engine.definition.schema import Node
from flows_engine.deliver import DeliveryResult
from flows_engine.run_step import StepResult
from flows_engine.tasks.retrying import BY_PARAMETERS, may_pass
from flows_engine.tasks.unforeseen import unforeseen_in_one_line
from flows_engine.wiring import site_engine


@task(
    name="send results",
    persist_result=True,
    cache_policy=BY_PARAMETERS,
    result_serializer="json",
    retry_condition_fn=may_pass,
)
def send_results(last: StepResult, *, node: Node, number: int, run_id: str) -> DeliveryResult:
    """Send what ``last`` left to ``node``, destination number ``number`` of the run. Raises an ``EngineError``.

    The whole result is a parameter, since Prefect keeps what was sent by its parameters: a model that ran again has
    left other files in the same folder.
    """
    logger = get_run_logger()
    with unforeseen_in_one_line(logger):
        return site_engine().deliver(output_dir=last.output_dir, node=node, number=number, run_id=run_id, logger=logger)
