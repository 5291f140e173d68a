"""What is built on private members of Prefect's worker: a release that changes them is told here."""

from __future__ import annotations

import inspect
from types import SimpleNamespace
from uuid import UUID, uuid4

import anyio
import pytest
from prefect.workers.base import BaseWorker
from prefect.workers.process import ProcessWorker

from deployments.study_worker import StudyWorker


def test_prefects_worker_still_has_the_member_that_is_overridden():
    overridden = BaseWorker._submit_scheduled_flow_runs

    assert list(inspect.signature(overridden).parameters) == ["self", "flow_run_response"]
    assert inspect.iscoroutinefunction(overridden)
    assert "acquire_on_behalf_of_nowait(flow_run.id)" in inspect.getsource(overridden)


def test_a_run_that_still_holds_its_slot_is_left_to_the_next_poll(monkeypatch: pytest.MonkeyPatch):
    submitted: list[UUID] = []

    async def submit(_self: object, flow_run_response: list[SimpleNamespace]) -> list[object]:
        submitted.extend(entry.flow_run.id for entry in flow_run_response)
        return []

    monkeypatch.setattr(ProcessWorker, "_submit_scheduled_flow_runs", submit)
    ending, new = uuid4(), uuid4()

    async def poll() -> None:
        worker = StudyWorker(work_pool_name="cpu")
        worker._limiter = anyio.CapacityLimiter(2)
        worker._limiter.acquire_on_behalf_of_nowait(ending)
        await worker._submit_scheduled_flow_runs(
            [SimpleNamespace(flow_run=SimpleNamespace(id=run_id)) for run_id in (ending, new)]
        )

    anyio.run(poll)

    assert submitted == [new]
