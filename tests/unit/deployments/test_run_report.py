"""One run of Prefect, told on one line."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

from prefect.client.schemas.objects import FlowRun, State, StateType

from deployments.run_report import as_object, run_line
from flows_engine.definition.state_codes import StateCode

SINCE = datetime(2024, 5, 6, 7, 8, 9, tzinfo=UTC)
ID = UUID("0193e4c2-7a54-7cc3-98c4-dc0c0c070001")


def run(state: State | None, **values: Any) -> FlowRun:
    parameters = {"study_id": "0193", "reason": "received", "definition": {"name": "Head"}}
    return FlowRun(
        **{
            "id": ID,
            "flow_id": ID,
            "name": "Head 0193",
            "state": state,
            "parameters": parameters,
            "work_pool_name": "gpu",
            "work_queue_name": "priority-4",
            **values,
        }
    )


def state(type_: StateType = StateType.FAILED, **values: Any) -> State:
    return State(**{"type": type_, "timestamp": SINCE, "message": "model 1 (busybox) ended with status 3", **values})


def test_a_run_is_told_with_code_state_message_and_where_it_belongs():
    line = run_line(run(state()))

    assert line is not None
    assert (line.code, line.state, line.message) == (
        StateCode.FAILED,
        "Failed",
        "model 1 (busybox) ended with status 3",
    )
    assert (line.flow, line.study_id, line.reason, line.note) == ("Head", "0193", "received", "")
    assert (line.run_id, line.run_name) == (str(ID), "Head 0193")
    assert (line.work_pool, line.priority, line.since) == ("gpu", 4, SINCE)


def test_a_run_that_was_asked_for_tells_why():
    line = run_line(run(state(), parameters={"reason": "reprocess", "note": "new\n version"}))

    assert line is not None
    assert (line.reason, line.note, line.flow, line.study_id) == ("reprocess", "new version", "", "")


def test_what_somebody_else_wrote_stays_on_its_line_and_is_no_command_to_a_terminal():
    line = run_line(run(state(message="two\nlines \x1b[31m\x07\u202e"), name="a\tb", parameters={"definition": ["?"]}))

    assert line is not None
    assert (line.message, line.run_name, line.flow) == ("two lines [31m", "a b", "")


def test_a_run_in_another_queue_has_no_priority_and_one_without_a_state_is_not_told():
    line = run_line(run(state(), work_queue_name="default"))

    assert line is not None
    assert line.priority is None
    assert run_line(run(None)) is None


def test_scripts_get_numbers_and_times():
    line = run_line(run(state(StateType.RUNNING, name="Sending", message=None)))

    assert line is not None
    told = as_object(line, now=SINCE + timedelta(seconds=75))
    assert (told["code"], told["state"], told["age_seconds"], told["message"]) == (3, "Sending", 75, "")
    assert datetime.fromisoformat(told["since"]) == SINCE
    assert set(told) == {
        *("code", "state", "since", "age_seconds", "message", "flow", "reason", "note", "priority"),
        *("work_pool", "run_id", "run_name", "study_id"),
    }
