"""The flow that takes one study through one definition. It reads as a recipe; the work is done in the engine."""

from __future__ import annotations

import os
from datetime import datetime
from typing import Annotated, Any, Final

import prefect
from prefect import Flow, State, get_run_logger, runtime
from prefect.client.schemas.objects import FlowRun
from prefect.exceptions import UnfinishedRun
from prefect.futures import PrefectFuture
from prefect.states import Completed, Failed
from pydantic import BeforeValidator, ValidationError, WithJsonSchema

from flows_engine.definition.naming import FLOW_NAME, Reason
from flows_engine.definition.schema import FlowDefinition, Node
from flows_engine.deliver import DeliveryResult
from flows_engine.errors import EngineError
from flows_engine.flows.run_account import give_account
from flows_engine.flows.run_identity import be_found
from flows_engine.flows.run_log import spare_foreseen_tracebacks
from flows_engine.flows.run_state import announce
from flows_engine.halting import threads_halted_on_error
from flows_engine.handoff.run_request import STUDY_ID_PATTERN, Sender
from flows_engine.handoff.site_settings import load_site_settings
from flows_engine.run_step import StepResult
from flows_engine.tasks.check_output import check_output
from flows_engine.tasks.retrying import retries, retry_delays_seconds
from flows_engine.tasks.run_model import run_model
from flows_engine.tasks.send_results import send_results
from flows_engine.tasks.unforeseen import kind_of, unforeseen_in_one_line
from flows_engine.wiring import site_engine

# An empty field of Prefect's form.
_NOTHING_TYPED: Final = BeforeValidator(lambda typed: None if typed == "" else typed)


def remove_containers(flow: Flow[..., Any], flow_run: FlowRun, state: State[Any]) -> None:  # noqa: ARG001
    """Remove what is left of a run's containers. The worker calls this where the run's own process no longer can."""
    site_engine().remove_containers(run_id=str(flow_run.id))


@prefect.flow(name=FLOW_NAME, on_crashed=[remove_containers], on_cancellation=[remove_containers])
def process_study(
    *,
    # A patient's name that is typed into the form is refused before Prefect has kept it.
    study_id: Annotated[str, WithJsonSchema({"type": "string", "pattern": STUDY_ID_PATTERN})],
    # The gateway says its own; whoever fills in the form in Prefect's UI wants a study once more.
    reason: Reason = "reprocess",  # noqa: ARG001 - shown with the run
    note: str = "",  # noqa: ARG001 - shown with the run
    # These are of no type for Prefect: where nothing is typed, its form sends null.
    received_at: Annotated[datetime | None, _NOTHING_TYPED, WithJsonSchema({})] = None,  # noqa: ARG001 - shown
    sender: Annotated[Sender | None, WithJsonSchema({})] = None,
    study_uri: str = "",  # noqa: ARG001 - for workers that do not share the gateway's disk
    # Prefect's server would check its whole schema again for every run that is made, which takes ten times as long; and
    # the UI would make a form of some fifty fields of it, where a text of JSON can be read and is kept as it is.
    definition: Annotated[FlowDefinition, WithJsonSchema({"type": "object"})],
) -> State[Any]:
    """Run the models of a definition on a received study, and send what the last one leaves to every destination.

    The parameters are those of a ``RunRequest``, in the order of Prefect's form, which shows what is said of them here.
    The state that is returned has one line for a person.

    Args:
        study_id: The study to process, as `dicomflow studies` lists it. Nothing else has to be filled in.
        reason: Why this run is made.
        note: What a person wants to say about it.
        received_at: When the study was received, in UTC. Its record says so, too.
        sender: Who sent the study. Results go back there if the flow says so; if this is empty, as the record says.
        study_uri: Where the study lies.
        definition: What is run, and where the results go. A run keeps it, whatever the flow's YAML says later.
    """
    run_id = str(runtime.flow_run.id)
    spare_foreseen_tracebacks()
    be_found(definition.name, study_id)
    try:
        with unforeseen_in_one_line(get_run_logger()), site_engine().claim(run_id=run_id):
            last = _run_models(definition, run_id=run_id, study_id=study_id)
            announce("Finished")
            if definition.expected is not None:
                check_output(definition, last, study_id=study_id)
            sent = _send(definition, last, sender=sender, study_id=study_id, run_id=run_id)
    except EngineError as error:
        get_run_logger().error("%s", error)
        state: State[Any] = Failed(message=str(error))
    else:
        state = Completed(message=f"{_counted(len(definition.models), 'model')} run, {sent}")
    give_account(definition, run_id=run_id, study_id=study_id, state=str(state.name))
    return state


def _run_models(definition: FlowDefinition, *, run_id: str, study_id: str) -> StepResult:
    """Run every model as soon as those are over that it needs. Return what the one left whose output is sent."""
    graph = definition.graph
    tasks = [
        run_model.with_options(
            task_run_name=_literal(step.title),
            retries=retries(model),
            retry_delay_seconds=retry_delays_seconds(model),
        )
        for step, model in zip(graph.steps, definition.models, strict=True)
    ]
    if not graph.has_branches:
        results = {step: tasks[step](definition, step=step, run_id=run_id, study_id=study_id) for step in graph.order}
        return results[graph.result]
    futures: dict[int, PrefectFuture[StepResult]] = {}
    with threads_halted_on_error():
        for step in graph.order:
            needed: list[PrefectFuture[Any] | Any] = [futures[other] for other in sorted(graph.needs(step))]
            futures[step] = tasks[step].submit(
                definition, step=step, run_id=run_id, study_id=study_id, wait_for=needed, return_state=False
            )
        # Branches beside one that failed are run to their end: a retry finds them done.
        failures = [failure for future in futures.values() if (failure := _failure(future))]
    if failures:
        raise EngineError("; ".join(failures))
    return futures[graph.result].result()


def _failure(future: PrefectFuture[StepResult]) -> str:
    """Wait for a model, and return why it failed. Nothing is said of one that did not begin, since another failed."""
    try:
        future.result()
    except EngineError as error:
        return str(error)
    except UnfinishedRun:
        return ""
    except Exception as error:  # noqa: BLE001 - whatever ends one branch, the others are waited for
        return f"a model ended with an unforeseen {kind_of(error)}"
    return ""


def _send(definition: FlowDefinition, last: StepResult, *, sender: Sender | None, study_id: str, run_id: str) -> str:
    """Send to all destinations side by side: one that is down delays none of the others."""
    nodes = list(definition.destinations)
    failures: list[str] = []
    for port in definition.return_to_sender_on_port:
        sender = sender or site_engine().sender(study_id=study_id)
        try:
            nodes.append(Node(host=sender.host, port=port, ae_title=sender.ae_title))
        except ValidationError:
            failures.append(f"nothing can be returned to port {port} of the sender: its AE title or host is unusable")
    if not nodes and not failures:
        return "nothing to be sent"
    announce("Sending")
    delays = load_site_settings(os.environ).settings.send_retry_delays_seconds
    futures = [
        send_results.with_options(
            task_run_name=_literal(f"send to {node.ae_title} at {node.host}:{node.port}"),
            retries=len(delays),
            retry_delay_seconds=list(delays),
        ).submit(last, node=node, number=number, run_id=run_id)
        for number, node in enumerate(nodes)
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
        f"{_counted(outcome.file_count, 'instance')} delivered to {outcome.destination}" for outcome in outcomes
    )


def _counted(count: int, thing: str) -> str:
    return f"{count} {thing}" if count == 1 else f"{count} {thing}s"


def _literal(name: str) -> str:
    """Return ``name`` as Prefect shows it unchanged: it takes the name of a task run as a format string."""
    return name.replace("{", "{{").replace("}", "}}")
