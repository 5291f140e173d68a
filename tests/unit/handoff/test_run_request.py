"""What the gateway hands to a run: it comes back from Prefect as it went, and holds no tag value of a patient."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import pytest
from pydantic import ValidationError

from flows_engine.definition.schema import FlowDefinition
from flows_engine.handoff.run_request import RunRequest, Sender
from tests.factories import flow_keys

STUDY_ID = "0193e4c2-7a54-7cc3-98c4-dc0c0c07398f"


def request(**values: Any) -> RunRequest:
    keys: dict[str, Any] = {
        "study_id": STUDY_ID,
        "study_uri": f"file:///data/studies/{STUDY_ID}",
        "sender": Sender(ae_title="SCANNER", host="10.0.0.7", port=51234),
        "received_at": datetime(2024, 1, 2, 3, 4, 5, 678901, tzinfo=UTC),
        "definition": FlowDefinition.model_validate(flow_keys(name="FancyFlow", version="1.10")),
    }
    return RunRequest.model_validate({**keys, **values})


@pytest.mark.parametrize("exclude_none", [True, False])
def test_a_request_survives_prefects_json_with_the_same_definition(exclude_none: bool) -> None:
    made = request(reason="reprocess", received_at=datetime(2024, 7, 1, tzinfo=timezone(timedelta(hours=2))))
    back = RunRequest.model_validate(made.model_dump(mode="json", exclude_none=exclude_none))

    assert back == made
    assert back.definition.digest == made.definition.digest
    assert back.received_at.utcoffset() is not None


def test_a_request_is_of_a_received_study_unless_it_says_otherwise() -> None:
    assert request().reason == "received"


def test_a_request_names_nothing_of_a_patient() -> None:
    by_us = {"study_id", "study_uri", "sender", "received_at", "reason", "definition"}
    assert set(RunRequest.model_fields) == {*by_us, "note"}  # a person who writes one is told to name no patient
    assert set(Sender.model_fields) == {"ae_title", "host", "port"}


@pytest.mark.parametrize(
    "study_id", ["", "../../etc/x", "0193E4C2-7A54", "a b c d e f", f"{STUDY_ID}\n", "1" * 65, None]
)
def test_what_is_no_study_id_is_refused(study_id: object) -> None:
    with pytest.raises(ValidationError, match="study_id"):
        request(study_id=study_id)


@pytest.mark.parametrize(
    "values", [{"reason": "because"}, {"received_at": "soon"}, {"definition": {"name": "x"}}, {"sender": None}]
)
def test_what_does_not_fit_is_refused(values: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        request(**values)


def test_a_request_cannot_be_changed() -> None:
    with pytest.raises(ValidationError, match="frozen"):
        request().study_id = "0" * 8  # type: ignore[misc]


def test_a_note_is_one_short_line_without_spaces_around_it() -> None:
    assert request().note == ""
    assert request(note=" model v2 ").note == "model v2"
    assert request(note="x" * 100).note == "x" * 100


@pytest.mark.parametrize("note", ["two\nlines", "a bell \a", "x" * 101])
def test_what_is_no_short_line_is_no_note(note: str) -> None:
    with pytest.raises(ValidationError, match="note"):
        request(note=note)


def test_a_request_of_a_version_without_notes_can_still_be_read() -> None:
    document = request().model_dump(mode="json")
    del document["note"]
    assert RunRequest.model_validate(document) == request()
