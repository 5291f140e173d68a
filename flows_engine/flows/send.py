"""The results of a run, to all of its destinations side by side: one that is down delays none of the others."""

from __future__ import annotations

import os

from prefect import get_run_logger
from pydantic import ValidationError

from flows_engine.definition.schema import FlowDefinition, Node
from flows_engine.deliver import DeliveryResult
from flows_engine.errors import EngineError
from flows_engine.flows.literal_name import literal_name
from flows_engine.flows.run_state import announce
from flows_engine.handoff.run_request import Sender
from flows_engine.handoff.site_settings import load_site_settings
from flows_engine.model_result import SENDER, Decision
from flows_engine.run_step import StepResult
from flows_engine.tasks.check_output import check_output
from flows_engine.tasks.send_results import send_results
from flows_engine.tasks.unforeseen import kind_of
from flows_engine.wiring import site_engine


def send(definition: FlowDefinition, last: StepResult, *, sender: Sender | None, study_id: str, run_id: str) -> str:
    """Look at what the last model left, then send it. Return in a few words what was sent. Raises ``EngineError``."""
    decided = last.decision or Decision()
    if decided.passed_over:
        get_run_logger().warning(
            "result.json decides on %s, which the flow does not leave to its model (model_decides)",
            " and ".join(decided.passed_over),
        )
    if decided.skip_reason is not None:
        return f"nothing sent, as its model says: {decided.skip_reason}"
    if definition.expected is not None:
        check_output(definition, last, run_id=run_id, study_id=study_id)

    def gets_it(name: str) -> bool:
        return decided.destinations is None or name in decided.destinations

    # The number of a destination is its place in the flow, whoever gets it this time.
    nodes = {number: node for number, node in enumerate(definition.destinations) if gets_it(node.ae_title)}
    failures: list[str] = []
    for number, port in enumerate(definition.return_to_sender_on_port, start=len(definition.destinations)):
        if not gets_it(SENDER):
            continue
        sender = sender or site_engine().sender(study_id=study_id)
        try:
            nodes[number] = Node(host=sender.host, port=port, ae_title=sender.ae_title)
        except ValidationError:
            failures.append(f"nothing can be returned to port {port} of the sender: its AE title or host is unusable")
    if not nodes and not failures:
        return "nothing to be sent"
    announce("Sending")
    delays = load_site_settings(os.environ).settings.send_retry_delays_seconds
    futures = [
        send_results.with_options(
            task_run_name=literal_name(f"send to {node.ae_title} at {node.host}:{node.port}"),
            retries=len(delays),
            retry_delay_seconds=list(delays),
        ).submit(last, node=node, number=number, run_id=run_id)
        for number, node in nodes.items()
    ]
    outcomes: list[DeliveryResult] = []
    for future in futures:
        try:
            outcomes.append(future.result())
        except EngineError as error:
            failures.append(str(error))
        except Exception as error:  # noqa: BLE001 - whatever ends one delivery, the others are waited for
            failures.append(f"a delivery ended with an unforeseen {kind_of(error)}")
    if failures:
        raise EngineError("; ".join(failures))
    return ", ".join(
        f"{counted(outcome.file_count, 'instance')} delivered to {outcome.destination}" for outcome in outcomes
    )


def counted(count: int, thing: str) -> str:
    """Return a number with the word for what is counted."""
    return f"{count} {thing}" if count == 1 else f"{count} {thing}s"
