"""The results of a run to one destination, as a Prefect task. A further attempt sends what has not arrived."""

from __future__ import annotations

from prefect import get_run_logger, task

from flows_engine.definition.schema import Node
from flows_engine.deliver import DeliveryResult
from flows_engine.tasks.retrying import may_pass
from flows_engine.wiring import site_engine


@task(name="send results", persist_result=True, result_serializer="json", retry_condition_fn=may_pass)
def send_results(output_dir: str, *, node: Node, number: int, run_id: str) -> DeliveryResult:
    """Send ``output_dir`` to ``node``, destination number ``number`` of the run. Raises an ``EngineError``."""
    return site_engine().deliver(
        output_dir=output_dir, node=node, number=number, run_id=run_id, logger=get_run_logger()
    )
