"""Runs that are created on a real Prefect server: once, with nothing of a patient, and for good."""

from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import UTC, datetime

import pytest
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.actions import DeploymentUpdate
from prefect.client.schemas.objects import FlowRun

from deployments.apply import bring_into_step
from dicom_gateway.errors import NotDeployedError, TriggerRefusedError, TriggerUnavailableError
from dicom_gateway.ledger import Ledger, LedgerRun
from dicom_gateway.outbox import Outbox
from dicom_gateway.prefect_trigger import PrefectTrigger
from flows_engine.definition.schema import FlowDefinition
from flows_engine.flows.process_study import process_study
from flows_engine.handoff.run_request import RunRequest, Sender
from tests.factories import leaked_canaries
from tests.fakes.definitions import FakeDefinitions
from tests.fakes.entered_studies import enter_study
from tests.fakes.tcp_door import TcpDoor
from tests.services import wait_until

pytestmark = pytest.mark.prefect

STUDY = "0193e4c2-7a54-7cc3-98c4-dc0c0c070001"


@pytest.fixture
def client(empty_prefect: str) -> Iterator[SyncPrefectClient]:
    with get_client(sync_client=True) as client:
        yield client


@pytest.fixture
def trigger(empty_prefect: str) -> Iterator[PrefectTrigger]:
    with PrefectTrigger() as trigger:
        yield trigger


def definition(name: str = "A", **values: object) -> FlowDefinition:
    document = {"name": name, "triggers": [{"Modality": "CT"}], "models": [{"docker_kwargs": {"image": "busybox"}}]}
    return FlowDefinition.model_validate({**document, **values})


def request_for(wanted: FlowDefinition, study_id: str = STUDY) -> RunRequest:
    return RunRequest(
        study_id=study_id,
        study_uri=f"file:///data/studies/{study_id}",
        sender=Sender(ae_title="PACS", host="10.0.0.1", port=104),
        received_at=datetime(2024, 5, 6, 7, 8, 9, tzinfo=UTC),
        definition=wanted,
    )


def only_run(client: SyncPrefectClient) -> FlowRun:
    (run,) = client.read_flow_runs()
    return run


def test_a_run_waits_in_the_queue_of_its_priority_with_the_tags_by_which_it_is_found(client, trigger):
    wanted = definition(version="1.02", priority=4, models=[{"docker_kwargs": {"image": "a"}, "gpu": True}])
    bring_into_step(client, [wanted])

    run_id = trigger.trigger(request_for(wanted), idempotency_key="key")

    run = only_run(client)
    assert (str(run.id), run.state_name, run.name) == (run_id, "Scheduled", f"A {STUDY}")
    assert (run.work_pool_name, run.work_queue_name) == ("gpu", "priority-4")
    assert sorted(run.tags) == ["dicomflow", "priority:4", f"study:{STUDY}", "version:1.02"]
    assert run.idempotency_key == "key"


def test_a_run_is_told_what_the_flow_takes_and_nothing_of_a_patient(client, trigger):
    wanted = definition()
    bring_into_step(client, [wanted])

    trigger.trigger(request_for(wanted), idempotency_key="key")

    run = only_run(client)
    taken = process_study.validate_parameters(run.parameters)
    assert taken["definition"] == wanted
    assert taken["sender"] == Sender(ae_title="PACS", host="10.0.0.1", port=104)
    assert taken["received_at"] == datetime(2024, 5, 6, 7, 8, 9, tzinfo=UTC)
    assert set(run.parameters) == {"study_id", "study_uri", "sender", "received_at", "reason", "note", "definition"}
    assert leaked_canaries(run.model_dump_json()) == []


def test_a_run_keeps_the_definition_that_it_was_made_with(client, trigger):
    first = definition(version="1")
    bring_into_step(client, [first])
    trigger.trigger(request_for(first), idempotency_key="key")

    bring_into_step(client, [definition(version="2", models=[{"docker_kwargs": {"image": "other"}}])])

    kept = FlowDefinition.model_validate(only_run(client).parameters["definition"])
    assert kept == first
    assert kept.digest == first.digest


def test_what_is_not_deployed_yet_can_be_triggered_later(client, trigger):
    with pytest.raises(NotDeployedError, match="no deployment process-study/A yet"):
        trigger.trigger(request_for(definition()), idempotency_key="key")
    assert client.read_flow_runs() == []

    bring_into_step(client, [definition()])

    assert trigger.trigger(request_for(definition()), idempotency_key="key") == str(only_run(client).id)


def test_studies_of_a_flow_that_is_not_deployed_say_so_and_are_triggered_once_it_is(client, trigger, tmp_path):
    there, awaited = definition("There"), definition("Awaited")
    bring_into_step(client, [there])
    ledger = Ledger(tmp_path / "ledger.sqlite")
    for wanted in (awaited, awaited, awaited, there):
        enter_study(ledger, wanted)
    outbox = Outbox(ledger, trigger, FakeDefinitions(there, awaited))
    outbox.start()

    def runs(flow: str) -> list[LedgerRun]:
        return [run for study in ledger.studies() for run in study.runs if run.flow == flow]

    wait_until(lambda: runs("There")[0].state == "created", seconds=30, what="the other flow is triggered")
    told = {"Prefect has no deployment process-study/Awaited yet"}
    wait_until(lambda: {run.last_error for run in runs("Awaited")} == told, seconds=30, what="the reason is told")
    bring_into_step(client, [there, awaited])
    wait_until(lambda: all(run.state == "created" for run in runs("Awaited")), seconds=30, what="all are triggered")
    outbox.stop()

    assert {run.last_error for run in runs("Awaited")} == {""}
    assert len(client.read_flow_runs()) == 4
    ledger.close()


def test_a_deployment_that_was_made_anew_is_found_again(client, trigger):
    bring_into_step(client, [definition()])
    trigger.trigger(request_for(definition()), idempotency_key="one")
    client.delete_flow_run(only_run(client).id)
    client.delete_deployment(client.read_deployments()[0].id)
    bring_into_step(client, [definition()])

    with pytest.raises(NotDeployedError, match="no deployment"):
        trigger.trigger(request_for(definition()), idempotency_key="two")

    assert trigger.trigger(request_for(definition()), idempotency_key="two") == str(only_run(client).id)


def test_a_deployment_of_that_name_of_another_flow_is_not_ours(client, trigger):
    client.create_deployment(flow_id=client.create_flow_from_name("somebody-elses"), name="A")

    with pytest.raises(NotDeployedError, match="no deployment"):
        trigger.trigger(request_for(definition()), idempotency_key="key")


def test_a_key_outlives_the_one_who_asked(client, trigger, empty_prefect):
    bring_into_step(client, [definition()])
    first = trigger.trigger(request_for(definition()), idempotency_key="key")

    with PrefectTrigger() as another:
        assert another.trigger(request_for(definition()), idempotency_key="key") == first
    assert len(client.read_flow_runs()) == 1


def test_a_server_that_goes_away_is_unavailable_until_it_is_back(client, empty_prefect):
    bring_into_step(client, [definition()])
    with TcpDoor(empty_prefect) as door, PrefectTrigger(SyncPrefectClient(door.url)) as trigger:
        with pytest.raises(TriggerUnavailableError, match="does not answer"):
            trigger.trigger(request_for(definition()), idempotency_key="key")
        door.open()
        run_id = trigger.trigger(request_for(definition()), idempotency_key="key")
        door.shut()
        with pytest.raises(TriggerUnavailableError, match="does not answer"):
            trigger.trigger(request_for(definition()), idempotency_key="key")
        door.open()
        assert trigger.trigger(request_for(definition()), idempotency_key="key") == run_id


def test_what_prefect_will_never_take_is_refused_without_its_words(client, trigger):
    bring_into_step(client, [definition()])
    too_long = request_for(definition()).model_copy(update={"study_uri": f"file:///{STUDY}" * 20_000})

    with pytest.raises(TriggerRefusedError, match="422") as caught:
        trigger.trigger(too_long, idempotency_key="key")

    assert STUDY not in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1


def test_a_deployment_that_another_version_made_does_not_refuse_a_study(client, trigger):
    bring_into_step(client, [definition()])
    (deployment,) = client.read_deployments()
    assert deployment.enforce_parameter_schema, "what a person types into the form is checked"
    schema = json.loads(json.dumps(deployment.parameter_openapi_schema))
    schema["properties"]["study_id"] = {"type": "integer"}
    client.update_deployment(deployment.id, DeploymentUpdate(parameter_openapi_schema=schema))

    assert trigger.trigger(request_for(definition()), idempotency_key="key") == str(only_run(client).id)
