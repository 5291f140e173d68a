"""The models of a run: one after another, or side by side where they do not need each other."""

from __future__ import annotations

from typing import Any

from prefect.exceptions import UnfinishedRun
from prefect.futures import PrefectFuture

from flows_engine.definition.schema import FlowDefinition
from flows_engine.errors import EngineError
from flows_engine.flows.literal_name import literal_name
from flows_engine.halting import threads_halted_on_error
from flows_engine.run_step import StepResult
from flows_engine.tasks.retrying import retries, retry_delays_seconds
from flows_engine.tasks.run_model import run_model
from flows_engine.tasks.unforeseen import kind_of


def run_models(definition: FlowDefinition, *, run_id: str, study_id: str) -> StepResult:
    """Run every model as soon as those are over that it needs. Return what the one left whose output is sent."""
    graph = definition.graph
    tasks = [
        run_model.with_options(
            task_run_name=literal_name(step.title),
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
        raise EngineError("; ".join(dict.fromkeys(failures)))
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
