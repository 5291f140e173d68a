from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from flows_engine.container_end import ContainerEnd
from flows_engine.docker_connection import connected
from flows_engine.errors import EngineMisconfiguredError, EngineUnavailableError, ModelInterruptedError
from flows_engine.handoff.engine_address import EngineAddress
from tests.fakes.engine_that_tells import CONTAINER_ID, Answer, EngineThatTells, engine_that_tells, event

START, DIE, TERM = event("start"), event("die", exitCode="0"), event("kill", signal="15")
LIMIT_SECONDS, PATIENCE_SECONDS = 1.0, 0.5


@contextmanager
def ended(
    *answers: Answer, stop_signal: str | None = None, patience_seconds: float = PATIENCE_SECONDS
) -> Iterator[tuple[ContainerEnd, EngineThatTells]]:
    with (
        engine_that_tells(EngineThatTells(answers=list(answers), stop_signal=stop_signal)) as engine,
        connected(EngineAddress(url=engine.url, options={"timeout": LIMIT_SECONDS})) as client,
    ):
        end = ContainerEnd(client, "dicomflow-run-1", patience_seconds=patience_seconds)
        try:
            yield end, engine
        finally:
            end.close()


def test_one_that_ended_by_itself_is_asked_for_by_its_id_alone() -> None:
    with ended(Answer(events=(START, DIE))) as (end, engine):
        end.confirm()
    (asked,) = engine.asked
    assert json.loads(asked["filters"][0])["container"] == [CONTAINER_ID]


@pytest.mark.parametrize("status", [401, 403, 404])
def test_who_may_not_listen_is_told_so_before_a_model_starts(status: int) -> None:
    with (
        pytest.raises(EngineMisconfiguredError, match=r"GET /events is refused \(.*not allowed.*EVENTS=1"),
        ended(Answer(status=status)),
    ):
        pass


def test_an_engine_that_cannot_answer_now_is_asked_by_a_retry() -> None:
    with pytest.raises(EngineUnavailableError, match="not allowed"), ended(Answer(status=503)):
        pass


def test_an_engine_that_does_not_answer_is_waited_for_within_its_time_limit() -> None:
    with pytest.raises(EngineUnavailableError), ended(Answer(is_withheld=True)):
        pass


def test_silence_may_be_longer_than_the_time_limit_for_an_answer() -> None:
    with ended(Answer(events=(START, DIE), silence_seconds=1.5 * LIMIT_SECONDS), patience_seconds=30) as (end, _):
        end.confirm()


def test_a_cut_connection_costs_no_result_of_an_engine_that_remembers() -> None:
    with ended(Answer(is_cut=True), Answer(events=(START, DIE))) as (end, engine):
        end.confirm()
    # By the engine's clock, which is years behind: 2020-01-02 03:04:05.678901234 UTC, and half a second.
    assert engine.asked[1]["until"] == ["1577934247"]


def test_an_engine_that_remembers_nothing_is_another_one() -> None:
    with (
        ended(Answer(is_cut=True), Answer(is_cut=True)) as (end, _),
        pytest.raises(EngineUnavailableError, match="went away while it ran"),
    ):
        end.confirm()


def test_an_engine_that_was_started_again_makes_up_the_end_of_what_it_finds_dead() -> None:
    with (
        ended(Answer(is_cut=True), Answer(events=(event("die", exitCode="255"),))) as (end, _),
        pytest.raises(EngineUnavailableError, match="went away while it ran"),
    ):
        end.confirm()


@pytest.mark.parametrize("again", [Answer(status=503), Answer(is_withheld=True), Answer()], ids=repr)
def test_an_engine_that_cannot_be_asked_again_is_gone(again: Answer) -> None:
    with (
        ended(Answer(is_cut=True), again) as (end, _),
        pytest.raises(EngineUnavailableError, match="went away while it ran"),
    ):
        end.confirm()


def test_a_stop_is_heard_from_what_the_engine_remembers() -> None:
    with (
        ended(Answer(is_cut=True), Answer(events=(START, TERM, DIE))) as (end, _),
        pytest.raises(ModelInterruptedError),
    ):
        end.confirm()


def test_one_that_was_stopped_is_not_done_where_its_end_is_told_late() -> None:
    with ended(Answer(events=(START, TERM))) as (end, _), pytest.raises(ModelInterruptedError):
        end.confirm()


def test_an_end_that_is_told_late_is_asked_for() -> None:
    with ended(Answer(), Answer(events=(START, DIE))) as (end, _):
        end.confirm()


@pytest.mark.parametrize("told", ["10", "SIGUSR1", "1", "28"])
def test_a_signal_that_ends_nothing_is_no_stop(told: str) -> None:
    with ended(Answer(events=(START, event("kill", signal=told), DIE))) as (end, _):
        end.confirm()


@pytest.mark.parametrize("told", ["9", "15", "SIGKILL", "SIGTERM", "3", "SIGQUIT", "", "unheard of"])
def test_a_signal_that_ends_it_or_may_do_so_is_a_stop(told: str) -> None:
    with (
        ended(Answer(events=(START, event("kill", signal=told), DIE)), stop_signal="SIGQUIT") as (end, _),
        pytest.raises(ModelInterruptedError, match="docker stop"),
    ):
        end.confirm()


def test_a_stop_without_a_signal_is_a_stop() -> None:
    with ended(Answer(events=(START, event("kill"), DIE))) as (end, _), pytest.raises(ModelInterruptedError):
        end.confirm()
