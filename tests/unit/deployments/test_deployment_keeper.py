from __future__ import annotations

import logging
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import httpx
import pytest

from deployments import deployment_keeper
from deployments.deployment_keeper import DeploymentKeeper
from deployments.plan import Change
from tests.services import wait_until

CHANGE = Change(action="create", name="A")


class FakePrefect:
    """Stands for ``get_client`` and ``bring_into_step``: fails as it is told to, and counts."""

    def __init__(self) -> None:
        self.failures: list[Exception] = []
        self.steps: list[list[str]] = []
        self.changes: list[tuple[Change, ...]] = []
        self.stepping = threading.Event()
        self.may_go_on = threading.Event()
        self.may_go_on.set()

    def bring_into_step(self, _client: object, definitions: list[str], *, instance_id: str) -> tuple[Change, ...]:
        assert instance_id == "this"
        self.stepping.set()
        assert self.may_go_on.wait(10)
        if self.failures:
            raise self.failures.pop(0)
        self.steps.append(list(definitions))
        return self.changes.pop(0) if self.changes else (CHANGE,)


@pytest.fixture
def prefect(monkeypatch: pytest.MonkeyPatch) -> FakePrefect:
    fake = FakePrefect()

    @contextmanager
    def get_client(*, sync_client: bool) -> Iterator[object]:
        yield object()

    monkeypatch.setattr(deployment_keeper, "get_client", get_client)
    monkeypatch.setattr(deployment_keeper, "bring_into_step", fake.bring_into_step)
    monkeypatch.setattr(deployment_keeper, "_FIRST_PAUSE_SECONDS", 0.05)
    return fake


@contextmanager
def keeping(names: list[str]) -> Iterator[DeploymentKeeper]:
    keeper = DeploymentKeeper(lambda: names, instance_id="this")
    keeper.start()
    try:
        yield keeper
    finally:
        keeper.stop()


def test_the_first_step_is_taken_without_being_asked(prefect: FakePrefect, caplog: pytest.LogCaptureFixture):
    caplog.set_level(logging.INFO)
    with keeping(["A"]):
        wait_until(lambda: "create A" in caplog.messages, seconds=5, what="the first step")

    assert prefect.steps == [["A"]]


def test_each_change_brings_a_step_with_the_definitions_of_that_moment(prefect: FakePrefect):
    names = ["A"]
    with keeping(names) as keeper:
        wait_until(lambda: len(prefect.steps) == 1, seconds=5, what="the first step")
        names.append("B")
        keeper.definitions_changed()
        wait_until(lambda: len(prefect.steps) == 2, seconds=5, what="the second step")

    assert prefect.steps == [["A"], ["A", "B"]]


@pytest.mark.parametrize(
    "failure",
    [
        httpx.ConnectError("refused"),
        httpx.ReadTimeout("slow"),
        # What a change on the server by someone else, or a server of another kind, looks like from here.
        LookupError("gone since it was read"),
        ValueError("no JSON"),
    ],
    ids=lambda failure: type(failure).__name__,
)
def test_whatever_goes_wrong_the_step_is_tried_until_it_has_worked(
    prefect: FakePrefect, caplog: pytest.LogCaptureFixture, failure: Exception
):
    prefect.failures = [failure, failure]

    with keeping(["A"]):
        wait_until(lambda: prefect.steps == [["A"]], seconds=5, what="the step after two failures")

    told = [record for record in caplog.records if record.action == "deploy_postponed"]
    assert len(told) == 2
    assert type(failure).__name__ in told[0].message


def test_a_change_during_a_step_is_not_lost(prefect: FakePrefect):
    prefect.may_go_on.clear()
    with keeping(["A"]) as keeper:
        assert prefect.stepping.wait(5)
        keeper.definitions_changed()
        prefect.may_go_on.set()
        wait_until(lambda: len(prefect.steps) == 2, seconds=5, what="the step for the change")


def test_it_ends_at_once_while_it_waits_for_prefect(prefect: FakePrefect, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(deployment_keeper, "_FIRST_PAUSE_SECONDS", 3600.0)
    prefect.failures = [httpx.ConnectError("refused")] * 99
    keeper = DeploymentKeeper(lambda: ["A"], instance_id="this")
    keeper.start()
    assert prefect.stepping.wait(5)

    stopper = threading.Thread(target=keeper.stop)
    stopper.start()
    stopper.join(timeout=5)

    assert not stopper.is_alive()
    assert prefect.steps == []


def test_what_was_paused_is_looked_at_again_by_itself(prefect: FakePrefect, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(deployment_keeper, "_REMOVAL_SECONDS", 0.05)
    prefect.changes = [(Change(action="pause", name="A"),), (Change(action="delete", name="A"),)]

    with keeping([]):
        wait_until(lambda: len(prefect.steps) == 2, seconds=5, what="the step that deletes")

    assert prefect.changes == []


def test_what_nobody_tells_of_is_set_right_by_a_look_now_and_then(
    prefect: FakePrefect, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(deployment_keeper, "_LOOK_SECONDS", 0.05)
    prefect.changes = [(), (Change(action="delete", name="A"),), (), (Change(action="create", name="B"),)]

    with keeping([]):
        wait_until(lambda: not prefect.changes, seconds=5, what="the looks")


def test_what_else_is_to_be_done_is_done_after_each_step(prefect: FakePrefect):
    done: list[int] = []
    keeper = DeploymentKeeper(list, instance_id="this", also=lambda _: done.append(len(prefect.steps)))
    keeper.start()
    try:
        wait_until(lambda: done == [1], seconds=5, what="the first step")
    finally:
        keeper.stop()
