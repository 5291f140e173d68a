"""States as numbers."""

from __future__ import annotations

import pytest
from prefect.client.schemas.objects import StateType

from flows_engine.definition.state_codes import CODE_OF_NAME, NOT_OVER, TYPES_OF_CODE, StateCode, state_code


@pytest.mark.parametrize(
    ("type_", "name", "code"),
    [
        ("SCHEDULED", "Scheduled", 0),
        ("SCHEDULED", "Late", 0),
        ("SCHEDULED", "AwaitingRetry", 0),
        ("SCHEDULED", "AwaitingConcurrencySlot", 0),
        ("PENDING", "Pending", 0),
        ("PENDING", "Submitting", 0),
        ("PAUSED", "Suspended", 0),
        ("RUNNING", "Running", 1),
        ("RUNNING", "Retrying", 1),
        ("CANCELLING", "Cancelling", 1),
        ("RUNNING", "Finished", 2),
        ("RUNNING", "Sending", 3),
        ("COMPLETED", "Completed", 4),
        ("FAILED", "Failed", 400),
        ("FAILED", "TimedOut", 400),
        ("CRASHED", "Crashed", 400),
        ("CANCELLED", "Cancelled", 410),
    ],
)
def test_a_state_has_the_code_of_the_dashboard(type_: str, name: str, code: int) -> None:
    assert state_code(type_=type_, name=name) == code


@pytest.mark.parametrize("type_", StateType)
def test_every_type_of_prefect_has_a_code(type_: StateType) -> None:
    assert state_code(type_=type_.value, name="whatever a person calls it") in StateCode


def test_our_names_count_only_for_a_run_that_runs() -> None:
    assert state_code(type_="SCHEDULED", name="Sending") == StateCode.WAITING
    assert state_code(type_="COMPLETED", name="Finished") == StateCode.COMPLETED


def test_a_type_that_prefect_does_not_have_is_an_error() -> None:
    with pytest.raises(ValueError, match="'FLYING'"):
        state_code(type_="FLYING", name="Flying")


def test_a_code_and_its_types_agree() -> None:
    names = {code: name for name, code in CODE_OF_NAME.items()}
    for code, types in TYPES_OF_CODE.items():
        assert {state_code(type_=type_, name=names.get(code, "")) for type_ in types} == {code}


def test_what_is_over_has_a_code_from_four_on() -> None:
    assert {code for code in StateCode if code < 4} == set(NOT_OVER)
