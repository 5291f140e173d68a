"""What the recipe promises about destinations that are odd, under a real Prefect server."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from prefect import State

import flows_engine.flows.process_study as recipe
import flows_engine.flows.send as send_module
from flows_engine.definition.schema import FlowDefinition
from flows_engine.run_step import StepResult
from tests.integration.test_process_study import FakeEngine, engine

__all__ = ["engine"]

pytestmark = pytest.mark.prefect

PACS = {"host": "pacs", "port": 104, "ae_title": "PACS"}
TO_PACS = "/runs/0 to PACS at pacs:104"


def process(*, sender: str = "SCANNER", ports: tuple[int, ...] = (), **values: Any) -> State[Any]:
    definition = FlowDefinition.model_validate(
        {
            "name": "A",
            "triggers": [],
            "models": [{"docker_kwargs": {"image": "busybox"}}],
            "destinations": [PACS],
            "return_to_sender_on_port": ports,
            **values,
        }
    )
    state: State[Any] = recipe.process_study(
        study_id="0193e4c2-7a54-7cc3-98c4-dc0c0c070001",
        study_uri="file:///studies/1",
        sender={"ae_title": sender, "host": "10.0.0.7", "port": 104},
        received_at="2024-05-06T07:08:09Z",
        definition=definition,
        return_state=True,
    )
    return state


def test_braces_in_the_senders_ae_title_are_not_a_format(engine: FakeEngine) -> None:
    state = process(sender="{X}", ports=(104,))

    assert state.name == "Completed"
    assert sorted(engine.calls) == [TO_PACS, "/runs/0 to {X} at 10.0.0.7:104", "check /runs/0", "model 0"]


def test_a_sender_that_nothing_can_be_returned_to_keeps_nothing_from_the_others(engine: FakeEngine) -> None:
    state = process(sender="", ports=(104,))

    assert state.name == "Failed"
    assert "nothing can be returned to port 104 of the sender" in (state.message or "")
    assert TO_PACS in engine.calls


def test_an_error_that_nobody_foresaw_is_told_by_its_type_and_the_others_are_sent(engine: FakeEngine) -> None:
    engine.failures[TO_PACS] = [ValueError("DOE^JANE")]
    state = process(ports=(104,))

    assert (state.name, state.message) == ("Failed", "it ended with an unforeseen ValueError")
    assert "/runs/0 to SCANNER at 10.0.0.7:104" in engine.calls


def test_what_a_model_left_when_it_ran_again_is_sent_again() -> None:
    first = StepResult(
        output_dir="/runs/0", file_count=1, exit_code=0, image_digest="", duration_seconds=1, started_at=1
    )
    parameters = [{"last": first.model_copy(update={"started_at": began})} for began in (1, 1, 2)]
    policy = send_module.send_results.cache_policy
    # As much of a task run as Prefect makes a key of. A namespace holds the task in the instance: read as an attribute
    # of a class, Prefect would bind it as a method, for good.
    context = SimpleNamespace(task=send_module.send_results, task_run=SimpleNamespace(flow_run_id="run"))
    keys = [policy.compute_key(task_ctx=context, inputs=given, flow_parameters={}) for given in parameters]
    assert keys[0] == keys[1] != keys[2]
