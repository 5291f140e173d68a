from __future__ import annotations

import pytest

from deployments.state_choice import StateChoice, UnknownStateError, failed, not_over, state_choice


@pytest.mark.parametrize(
    ("text", "name"), [("Sending", "Sending"), ("late", "Late"), ("AWAITINGRETRY", "AwaitingRetry")]
)
def test_a_state_is_asked_for_by_its_name_in_whatever_case(text: str, name: str):
    assert state_choice(text) == StateChoice(names=(name,))


@pytest.mark.parametrize(
    ("code", "choice"),
    [
        ("0", StateChoice(types=("SCHEDULED", "PENDING", "PAUSED"))),
        ("1", StateChoice(types=("RUNNING", "CANCELLING"), not_names=("Finished", "Sending"))),
        ("2", StateChoice(types=("RUNNING",), names=("Finished",))),
        ("3", StateChoice(types=("RUNNING",), names=("Sending",))),
        ("4", StateChoice(types=("COMPLETED",))),
        ("400", StateChoice(types=("FAILED", "CRASHED"))),
        ("410", StateChoice(types=("CANCELLED",))),
    ],
)
def test_a_state_is_asked_for_by_its_code(code: str, choice: StateChoice):
    assert state_choice(code) == choice


def test_failed_and_not_over_are_what_they_say():
    assert failed() == state_choice("400")
    assert not_over() == StateChoice(types=("SCHEDULED", "PENDING", "PAUSED", "RUNNING", "CANCELLING"))


@pytest.mark.parametrize(
    ("text", "hint"), [("complete", "did you mean Completed?"), ("zzz", "there are Scheduled, "), ("5", "there are ")]
)
def test_a_state_that_does_not_exist_is_an_error_with_a_way_out(text: str, hint: str):
    with pytest.raises(UnknownStateError) as told:
        state_choice(text)

    assert str(told.value).startswith(f"no state is called '{text}'; {hint}")
    assert str(told.value).endswith("(or a code: 0, 1, 2, 3, 4, 400, 410)")
