"""The flow that takes one study through one definition. It reads as a recipe; the work is done in the engine."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any, Final

import prefect
from prefect import Flow, State, get_run_logger, runtime
from prefect.client.schemas.objects import FlowRun
from prefect.states import Completed, Failed
from pydantic import BeforeValidator, WithJsonSchema

from flows_engine.definition.naming import FLOW_NAME, Reason
from flows_engine.definition.schema import FlowDefinition
from flows_engine.errors import EngineError
from flows_engine.flows.run_account import give_account
from flows_engine.flows.run_identity import be_found
from flows_engine.flows.run_log import spare_foreseen_tracebacks
from flows_engine.flows.run_models import run_models
from flows_engine.flows.run_state import announce
from flows_engine.flows.send import counted, send
from flows_engine.handoff.run_request import STUDY_ID_PATTERN, Sender
from flows_engine.tasks.unforeseen import unforeseen_in_one_line
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
            state = _carried_out(definition, run_id=run_id, study_id=study_id, sender=sender)
            give_account(definition, run_id=run_id, study_id=study_id, state=str(state.name))
            return state
    except EngineError as error:
        return _failed(error)


def _carried_out(definition: FlowDefinition, *, run_id: str, study_id: str, sender: Sender | None) -> State[Any]:
    try:
        with unforeseen_in_one_line(get_run_logger()):
            last = run_models(definition, run_id=run_id, study_id=study_id)
            announce("Finished")
            sent = send(definition, last, sender=sender, study_id=study_id, run_id=run_id)
    except EngineError as error:
        return _failed(error)
    return Completed(message=f"{counted(len(definition.models), 'model')} run, {sent}")


def _failed(error: EngineError) -> State[Any]:
    get_run_logger().error("%s", error)
    return Failed(message=str(error))
