"""What every RunTrigger promises. A member is added to ``MEMBERS``, and has to pass as it is."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager
from datetime import UTC, datetime

import pytest
from prefect.client.orchestration import SyncPrefectClient
from prefect.context import refresh_global_settings_context

from deployments.apply import bring_into_step
from dicom_gateway.errors import TriggerUnavailableError
from dicom_gateway.interfaces import RunTrigger
from dicom_gateway.prefect_trigger import PrefectTrigger
from flows_engine.definition.schema import FlowDefinition
from flows_engine.handoff.run_request import RunRequest, Sender
from tests.fakes.definitions import flow
from tests.fakes.run_trigger import FakeRunTrigger

DEFINITION = flow("contract", {"Modality": "CT"})

Member = Callable[[pytest.FixtureRequest, FlowDefinition], AbstractContextManager[RunTrigger]]
"""Makes a trigger in whose world the definition is deployed; may ask for fixtures of the session."""


@contextmanager
def in_memory(_request: pytest.FixtureRequest, _definition: FlowDefinition) -> Iterator[RunTrigger]:
    yield FakeRunTrigger()


@contextmanager
def on_prefect(request: pytest.FixtureRequest, definition: FlowDefinition) -> Iterator[RunTrigger]:
    url = request.getfixturevalue("prefect_server")
    with SyncPrefectClient(url) as client:
        bring_into_step(client, [definition])
    with PrefectTrigger(SyncPrefectClient(url)) as trigger:
        yield trigger


MEMBERS = [pytest.param(in_memory, id="in-memory"), pytest.param(on_prefect, id="prefect", marks=pytest.mark.prefect)]


@pytest.fixture(scope="module", params=MEMBERS)
def trigger(request):
    with without_retries(), request.param(request, DEFINITION) as member:
        yield member


@contextmanager
def without_retries():
    """As the gateway has it, who waits for a server that is away by himself."""
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("PREFECT_CLIENT_MAX_RETRIES", "0")
        refresh_global_settings_context()
        yield
    refresh_global_settings_context()


def run_request(study_id="0193e4c2-7a54-7cc3-98c4-dc0c0c070001"):
    return RunRequest(
        study_id=study_id,
        study_uri=f"file:///data/studies/{study_id}",
        sender=Sender(ae_title="PACS", host="10.0.0.1", port=104),
        received_at=datetime(2024, 5, 6, tzinfo=UTC),
        definition=DEFINITION,
    )


def test_the_same_key_gives_the_same_run(trigger):
    first = trigger.trigger(run_request(), idempotency_key="contract:same")
    assert first
    assert trigger.trigger(run_request(), idempotency_key="contract:same") == first


def test_another_key_gives_another_run(trigger):
    one = trigger.trigger(run_request(), idempotency_key="contract:one")
    other = trigger.trigger(run_request(), idempotency_key="contract:other")
    assert one != other


def test_several_threads_that_ask_for_one_run_get_one(trigger):
    with ThreadPoolExecutor(4) as pool:
        runs = set(pool.map(lambda _: trigger.trigger(run_request(), idempotency_key="contract:raced"), range(4)))
    assert len(runs) == 1


def test_runs_of_two_studies_are_two(trigger):
    ids = ["0193e4c2-7a54-7cc3-98c4-dc0c0c070002", "0193e4c2-7a54-7cc3-98c4-dc0c0c070003"]
    runs = {trigger.trigger(run_request(study_id), idempotency_key=f"{study_id}:contract:1") for study_id in ids}
    assert len(runs) == 2


def test_many_that_are_asked_for_at_once_are_one_run_for_each_key(trigger):
    keys = [f"contract:crowd:{number // 2}" for number in range(48)]
    with ThreadPoolExecutor(len(keys)) as pool:
        runs = list(pool.map(lambda key: trigger.trigger(run_request(), idempotency_key=key), keys))
    assert runs[::2] == runs[1::2]
    assert len(set(runs)) == 24
    assert runs == [trigger.trigger(run_request(), idempotency_key=key) for key in keys]


def test_one_that_fails_among_many_takes_none_of_them_with_it(trigger):
    unstorable = "\0"  # what no text in PostgreSQL can hold; its error undoes the whole transaction

    def ask(number):
        tags = [unstorable] if number == 12 else []
        try:
            return trigger.trigger(run_request(), idempotency_key=f"contract:poisoned:{number}", tags=tags)
        except TriggerUnavailableError:
            return None

    with ThreadPoolExecutor(24) as pool:
        runs = list(pool.map(ask, range(24)))
    again = [trigger.trigger(run_request(), idempotency_key=f"contract:poisoned:{number}") for number in range(24)]
    others = [number for number in range(24) if number != 12]
    assert [runs[number] for number in others] == [again[number] for number in others]
    assert len(set(again)) == 24
