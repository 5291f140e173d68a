"""The recipe under a real Prefect server, on an engine that does nothing but remember and fail as it is told to."""

from __future__ import annotations

import json
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from prefect.client.orchestration import get_client
from prefect.client.schemas.objects import FlowRun, State
from prefect.context import refresh_global_settings_context

import flows_engine.flows.process_study as recipe
import flows_engine.flows.run_account as account_module
import flows_engine.flows.send as send_module
import flows_engine.tasks.check_output as check_output_module
import flows_engine.tasks.run_model as run_model_module
import flows_engine.tasks.send_results as send_results_module
from flows_engine.definition.schema import FlowDefinition, Node
from flows_engine.deliver import DeliveryResult
from flows_engine.errors import (
    DestinationUnavailableError,
    ModelFailedError,
    NoSpaceError,
    RunHaltedError,
    UnexpectedOutputError,
)
from flows_engine.handoff.run_request import Sender
from flows_engine.model_result import Decision
from flows_engine.run_record import RunRecord, as_markdown
from flows_engine.run_step import StepResult

pytestmark = pytest.mark.prefect

ASKS_THE_ENGINE = (
    recipe,
    account_module,
    send_module,
    run_model_module,
    check_output_module,
    send_results_module,
)
"""Where a run asks for the engine of its site."""
ENDLESS = "endless"
PATIENTS_SENDER = {"ae_title": "SCANNER", "host": "10.0.0.7", "port": 104}


class FakeEngine:
    """Remembers what it is asked for; ``failures`` end the calls of that name, one each.

    A model that waits for ``together`` others goes on when that many of them do.
    """

    def __init__(self) -> None:
        self.calls: list[str] = []
        self.failures: dict[str, list[Exception]] = {}
        self.held = False
        self.together = threading.Barrier(1)
        self.halted: list[int] = []
        self.records: list[RunRecord] = []
        self.results: dict[int, dict[str, Any]] = {}
        self.decisions: dict[int, Decision] = {}

    @contextmanager
    def claim(self, *, run_id: str) -> Iterator[None]:
        self.held = True
        try:
            yield
        finally:
            self.held = False

    def run_step(
        self, definition: FlowDefinition, *, step: int, is_halted: Callable[[], bool], **_: object
    ) -> StepResult:
        self._call(f"model {step}")
        if definition.graph.has_branches and not definition.graph.needs(step):
            self.together.wait(60)
        if definition.models[step].docker_kwargs.image == ENDLESS:
            while not is_halted():
                time.sleep(0.01)
            self.halted.append(step)
            raise RunHaltedError
        return StepResult(
            output_dir=f"/runs/{step}",
            file_count=3,
            exit_code=0,
            image_digest="sha256:0",
            duration_seconds=0.1,
            result=json.dumps(self.results[step]) if step in self.results else "",
            decision=self.decisions.get(step),
        )

    def check_output(self, definition: FlowDefinition, *, output_dir: str, **_: object) -> None:
        self._call(f"check {output_dir}")

    def deliver(self, *, output_dir: str, node: Node, **_: object) -> DeliveryResult:
        self._call(f"{output_dir} to {node.ae_title} at {node.host}:{node.port}")
        return DeliveryResult(destination=node.ae_title, file_count=3, sent_count=3, not_dicom_count=0)

    def record(self, definition: FlowDefinition, **told: Any) -> RunRecord:
        self.records.append(
            RunRecord(
                flow=definition.name,
                version="",
                definition_digest=definition.digest,
                worker_host="here",
                ended_at=datetime.now(UTC),
                steps=(),
                **told,
            )
        )
        return self.records[-1]

    def sender(self, *, study_id: str) -> Sender:
        return Sender(ae_title="AS_RECORDED", host="10.0.0.8", port=104)

    def _call(self, name: str) -> None:
        assert self.held
        self.calls.append(name)
        if self.failures.get(name):
            raise self.failures[name].pop(0)


@pytest.fixture
def engine(empty_prefect: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeEngine]:
    engine = FakeEngine()
    for module in ASKS_THE_ENGINE:
        monkeypatch.setattr(module, "site_engine", lambda: engine)
    with monkeypatch.context() as environment:
        environment.setenv("SEND_RETRY_DELAYS_SECONDS", "0")
        environment.setenv("CONF_DIR", str(tmp_path))
        environment.setenv("PREFECT_LOCAL_STORAGE_PATH", str(tmp_path / "results"))
        refresh_global_settings_context()
        yield engine
    refresh_global_settings_context()


def process(*, request: dict[str, Any] | None = None, **values: Any) -> State[Any]:
    told = {"study_uri": "file:///studies/1", "sender": PATIENTS_SENDER, "received_at": "2024-05-06T07:08:09Z"}
    model = {"docker_kwargs": {"image": "busybox"}}
    definition = FlowDefinition.model_validate({"name": "A", "triggers": [], "models": [model, model], **values})
    return recipe.process_study(
        study_id="0193e4c2-7a54-7cc3-98c4-dc0c0c070001",
        **(told if request is None else request),
        definition=definition,
        return_state=True,
    )


def only_run() -> tuple[FlowRun, list[str]]:
    """Return the run with the names of the states that it went through."""
    with get_client(sync_client=True) as client:
        (run,) = client.read_flow_runs()
        states = sorted(client.read_flow_run_states(run.id), key=lambda state: state.timestamp)
    return run, [state.name for state in states]


def test_models_run_in_order_then_the_last_output_goes_to_every_destination(engine: FakeEngine):
    state = process(destinations=[{"host": "pacs", "port": 104, "ae_title": "PACS"}], return_to_sender_on_port=[10002])

    assert engine.calls[:3] == ["model 0", "model 1", "check /runs/1"]
    assert sorted(engine.calls[3:]) == ["/runs/1 to PACS at pacs:104", "/runs/1 to SCANNER at 10.0.0.7:10002"]
    assert state.name == "Completed"
    assert state.message.startswith("2 models run, 3 instances")
    assert not engine.held


@pytest.mark.parametrize("request_", [{}, {"received_at": "", "study_uri": ""}])
def test_who_fills_in_prefects_form_needs_to_name_the_study_alone(engine: FakeEngine, request_: dict[str, Any]):
    state = process(request=request_, return_to_sender_on_port=[10002])

    assert state.name == "Completed"
    assert engine.calls[-1] == "/runs/1 to AS_RECORDED at 10.0.0.8:10002"
    run, _ = only_run()
    assert run.parameters["reason"] == "reprocess"
    assert run.name == "A 0193e4c2-7a54-7cc3-98c4-dc0c0c070001"
    assert "study:0193e4c2-7a54-7cc3-98c4-dc0c0c070001" in run.tags


def test_the_states_of_the_dashboard_are_shown_in_their_order(engine: FakeEngine):
    process(destinations=[{"host": "pacs", "port": 104, "ae_title": "PACS"}])

    _, states = only_run()
    assert states[-4:] == ["Running", "Finished", "Sending", "Completed"]


def test_a_flow_without_destinations_never_says_that_it_sends(engine: FakeEngine):
    state = process()

    assert state.message == "2 models run, nothing to be sent"
    assert only_run()[1][-3:] == ["Running", "Finished", "Completed"]


def test_a_model_that_fails_ends_the_run_with_its_reason_and_nothing_is_sent(engine: FakeEngine):
    engine.failures["model 0"] = [ModelFailedError("model 1 (busybox) ended with status 3")]

    state = process(destinations=[{"host": "pacs", "port": 104, "ae_title": "PACS"}])

    assert (state.name, state.message) == ("Failed", "model 1 (busybox) ended with status 3")
    assert engine.calls == ["model 0"]
    assert only_run()[0].state.message == "model 1 (busybox) ended with status 3"


def test_an_output_that_is_not_as_expected_fails_the_run_and_nothing_is_sent(engine: FakeEngine):
    engine.failures["check /runs/1"] = [UnexpectedOutputError("the output is not as expected")]

    state = process(destinations=[{"host": "pacs", "port": 104, "ae_title": "PACS"}])

    assert (state.name, state.message) == ("Failed", "the output is not as expected")
    assert engine.calls == ["model 0", "model 1", "check /runs/1"]
    run, states = only_run()
    assert (run.state.message, states[-3:]) == ("the output is not as expected", ["Running", "Finished", "Failed"])


@pytest.mark.parametrize(
    ("values", "is_checked"),
    [({}, False), ({"expect": {"min_files": 1}}, True), ({"return_to_sender_on_port": [10002]}, True)],
)
def test_an_output_is_looked_at_where_it_is_sent_or_something_is_expected(
    engine: FakeEngine, values: dict[str, Any], is_checked: bool
):
    assert process(**values).is_completed()
    assert ("check /runs/1" in engine.calls) == is_checked


def test_a_destination_that_is_down_for_a_moment_is_tried_again(engine: FakeEngine):
    down = "/runs/1 to PACS at pacs:104"
    engine.failures[down] = [DestinationUnavailableError("PACS at pacs:104 does not answer")]

    state = process(destinations=[{"host": "pacs", "port": 104, "ae_title": "PACS"}])

    assert state.name == "Completed"
    assert engine.calls.count(down) == 2


def test_a_run_never_says_that_it_sent_what_it_did_not(engine: FakeEngine):
    down = "/runs/1 to PACS at pacs:104"
    engine.failures[down] = [DestinationUnavailableError("PACS at pacs:104 does not answer")] * 9

    state = process(
        destinations=[
            {"host": "pacs", "port": 104, "ae_title": "PACS"},
            {"host": "plan", "port": 104, "ae_title": "PLAN"},
        ]
    )

    assert (state.name, state.message) == ("Failed", "PACS at pacs:104 does not answer")
    assert "/runs/1 to PLAN at plan:104" in engine.calls


def test_a_fault_that_nobody_foresaw_fails_the_run(engine: FakeEngine):
    engine.failures["model 1"] = [ZeroDivisionError("a fault of ours")]

    assert process().is_failed()
    assert engine.calls == ["model 0", "model 1"]
    assert not engine.held


def fold(name: str, *, reads: str = "src", image: str = "busybox") -> dict[str, Any]:
    """Return a model that reads names, with spaces between them, and writes one."""
    inputs = {read: f"/in/{read}" for read in reads.split()}
    return {"docker_kwargs": {"image": image}, "input_mounts": inputs, "output_mounts": {name: "/output"}}


def test_branches_are_run_at_the_same_time_and_a_join_after_all_of_them(engine: FakeEngine):
    engine.together = threading.Barrier(3)

    state = process(
        models=[fold("dst", reads="a b c"), fold("a"), fold("b"), fold("c")],
        destinations=[{"host": "pacs", "port": 104, "ae_title": "PACS"}],
    )

    assert state.name == "Completed"
    assert sorted(engine.calls[:3]) == ["model 1", "model 2", "model 3"]
    assert engine.calls[3:] == ["model 0", "check /runs/0", "/runs/0 to PACS at pacs:104"]


def test_every_branch_that_failed_is_told_and_what_needs_it_does_not_begin(engine: FakeEngine):
    engine.failures["model 2"] = [ModelFailedError("model 2 (busybox) exited with code 3: no")]
    engine.failures["model 1"] = [ModelFailedError("model 1 (busybox) exited with code 4: neither")]

    state = process(models=[fold("a"), fold("b"), fold("c"), fold("dst", reads="a b c")])

    assert state.name == "Failed"
    assert state.message == "model 1 (busybox) exited with code 4: neither; model 2 (busybox) exited with code 3: no"
    assert "model 3" not in engine.calls


def test_a_signal_stops_the_branches_that_are_under_way(engine: FakeEngine):
    models = [fold("a", image=ENDLESS), fold("b", image=ENDLESS), fold("dst", reads="a b")]

    def interrupt() -> None:
        while len(engine.calls) < 2:
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGINT)

    thread = threading.Thread(target=interrupt)
    thread.start()
    with pytest.raises(KeyboardInterrupt):
        process(models=models)
    thread.join()

    assert sorted(engine.halted) == [0, 1]
    assert "model 2" not in engine.calls


@pytest.mark.parametrize("fails", [False, True], ids=["well", "failed"])
def test_a_run_gives_account_of_itself_whichever_way_it_ends(engine: FakeEngine, fails: bool):
    if fails:
        engine.failures["model 1"] = [ModelFailedError("model 1 (busybox) exited with code 3: no")]

    state = process()

    (record,) = engine.records
    assert record.state == state.name
    run, _ = only_run()
    assert record.run_id == str(run.id)
    with get_client(sync_client=True) as client:
        kept = [artifact for artifact in client.read_artifacts() if artifact.flow_run_id == run.id]
    assert [artifact.data for artifact in kept if artifact.type == "markdown"] == [as_markdown(record)]


def test_a_run_does_not_fail_because_its_account_cannot_be_kept(
    engine: FakeEngine, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    def refuse(*_: object, **__: object) -> RunRecord:
        raise NoSpaceError("run.json cannot be written: No space left on device")

    monkeypatch.setattr(FakeEngine, "record", refuse)

    assert process().name == "Completed"
    assert "what the run did is not kept: run.json cannot be written" in caplog.text


def test_a_model_may_decide_that_nothing_is_sent_where_its_flow_lets_it(engine: FakeEngine):
    engine.results[1] = {"skip_send": True, "reason": "no contrast `agent`"}
    engine.decisions[1] = Decision(skip_reason="no contrast `agent`")
    nodes = [{"host": "pacs", "port": 104, "ae_title": "PACS"}]

    state = process(destinations=nodes, model_decides=["skip_send"])

    assert (state.name, state.message) == (
        "Completed",
        "2 models run, nothing sent, as its model says: no contrast `agent`",
    )
    assert engine.calls == ["model 0", "model 1"]
    run, states = only_run()
    assert "Sending" not in states
    with get_client(sync_client=True) as client:
        kept = [artifact.data for artifact in client.read_artifacts() if artifact.flow_run_id == run.id]
    (shown,) = (text for text in kept if str(text).startswith("```json"))
    assert str(shown).count("`") == 6
    assert json.loads(str(shown).removeprefix("```json").removesuffix("```"))["reason"] == "no contrast `agent`"


def test_a_model_decides_on_nothing_where_its_flow_does_not_say_so(
    engine: FakeEngine, caplog: pytest.LogCaptureFixture
):
    engine.decisions[1] = Decision(passed_over=("skip_send", "destinations"))

    state = process(destinations=[{"host": "pacs", "port": 104, "ae_title": "PACS"}])

    assert state.name == "Completed"
    assert engine.calls[-1] == "/runs/1 to PACS at pacs:104"
    assert "decides on skip_send and destinations, which the flow does not leave to its model" in caplog.text


def test_only_the_destinations_that_the_model_chose_get_it(engine: FakeEngine):
    engine.decisions[1] = Decision(destinations=("RESEARCH", "sender"))
    nodes = [{"host": "pacs", "port": 104, "ae_title": title} for title in ("PACS", "RESEARCH")]

    state = process(destinations=nodes, return_to_sender_on_port=[104], model_decides=["destinations"])

    assert state.name == "Completed"
    assert sorted(call for call in engine.calls if " to " in call) == [
        "/runs/1 to RESEARCH at pacs:104",
        "/runs/1 to SCANNER at 10.0.0.7:104",
    ]
