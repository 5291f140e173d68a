from __future__ import annotations

from types import SimpleNamespace

import pytest
from prefect import State, task
from prefect.client.schemas.objects import StateType, TaskRun

from flows_engine import errors
from flows_engine.definition.schema import Model
from flows_engine.tasks.retrying import may_pass, retries, retry_delays_seconds
from flows_engine.tasks.run_model import run_model
from flows_engine.tasks.send_results import send_results

RUN = TaskRun(task_key="one", dynamic_key="0")


@task
def some_task() -> None:
    """Do nothing."""


def _all_errors() -> list[type[errors.EngineError]]:
    return [
        value for value in vars(errors).values() if isinstance(value, type) and issubclass(value, errors.EngineError)
    ]


@pytest.mark.parametrize("kind", _all_errors(), ids=lambda kind: kind.__name__)
def test_only_what_passes_by_itself_is_tried_again(kind: type[errors.EngineError]):
    state = State(type=StateType.FAILED, data=kind.__new__(kind))

    assert may_pass(some_task, RUN, state) is issubclass(kind, errors.RetryableError)


@pytest.mark.parametrize("data", [ValueError("a fault of ours"), None, "text"])
def test_what_nobody_foresaw_is_not_tried_again(data: object):
    assert not may_pass(some_task, RUN, State(type=StateType.FAILED, data=data))


@pytest.mark.parametrize("engine_task", [run_model, send_results], ids=lambda engine_task: engine_task.name)
def test_the_results_of_a_run_are_kept_for_its_retry(engine_task):
    assert engine_task.persist_result is True
    assert engine_task.retry_condition_fn is may_pass


@pytest.mark.parametrize(
    ("values", "times", "delays"),
    [
        ({}, 2, [10, 60]),
        ({"retries": 0}, 0, [10, 60]),
        ({"retries": 5, "retry_delay_seconds": [1, 2]}, 5, [1, 2]),
        ({"retry_delay_seconds": 0}, 2, [0]),
    ],
)
def test_a_flow_may_say_how_often_and_after_how_long(values: dict[str, object], times: int, delays: list[float]):
    model = Model.model_validate({"docker_kwargs": {"image": "a"}, **values})

    assert (retries(model), retry_delays_seconds(model)) == (times, delays)
    run_model.with_options(retries=retries(model), retry_delay_seconds=retry_delays_seconds(model))


@pytest.mark.parametrize("engine_task", [run_model, send_results], ids=lambda engine_task: engine_task.name)
def test_a_later_version_finds_the_results_of_an_earlier_one(engine_task):
    """The key has no part that is the task's text: what finished before an update is not run again by a retry after."""
    told = {"run_id": "1", "step": 0}
    keys = [
        engine_task.cache_policy.compute_key(
            SimpleNamespace(task=SimpleNamespace(fn=fn, name="other"), task_run=SimpleNamespace(flow_run_id="run")),
            inputs=told,
            flow_parameters={},
        )
        for fn in (lambda: 1, lambda: 2)
    ]
    assert keys[0] == keys[1] is not None
