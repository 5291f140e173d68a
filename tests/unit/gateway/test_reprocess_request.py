from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from dicom_gateway.errors import RequestError
from dicom_gateway.reprocess_request import ReprocessRequest, is_uid, read_request
from flows_engine.handoff.run_request import is_study_id
from tests.factories import CANARY_NAME, leaked_canaries

STUDY = "0193e4c2-7a54-7cc3-98c4-dc0c0c07398f"
NOW = datetime(2024, 7, 1, 12, tzinfo=UTC)


def read(**parameters: Any) -> ReprocessRequest:
    return read_request(**parameters, asked_at=NOW)


def test_one_study_is_asked_for_by_its_id_or_its_uid():
    assert read(study=f" {STUDY} ").study == STUDY
    assert read(study="1.2.840.113619").study == "1.2.840.113619"
    assert not read(study=STUDY).in_bulk


def test_a_span_without_an_end_ends_when_it_was_asked_for():
    assert read(since="2d") == ReprocessRequest(since=NOW - timedelta(days=2), until=NOW)
    assert read(since="2d").in_bulk


def test_a_span_may_have_no_beginning_and_may_have_both():
    assert read(until="1d") == ReprocessRequest(since=None, until=NOW - timedelta(days=1))
    both = read(since="2024-05-01T00:00Z", until="2024-05-02T00:00Z")
    assert (both.since, both.until) == (datetime(2024, 5, 1, tzinfo=UTC), datetime(2024, 5, 2, tzinfo=UTC))


def test_everything_else_is_kept_as_it_was_asked_for():
    asked = read(
        study=STUDY, flow=" A ", only_matching=True, priority=5, note=" model v2 ", receptions="all", dry_run=True
    )

    assert asked == ReprocessRequest(
        study=STUDY, flow="A", only_matching=True, priority=5, note="model v2", receptions="all", dry_run=True
    )


@pytest.mark.parametrize(
    ("parameters", "told"),
    [
        ({}, "neither a study nor a span of time is given; name a study, or give since, like 2d"),
        ({"study": STUDY, "since": "2d"}, "study and since or until are both given"),
        ({"study": STUDY, "until": "2d"}, "study and since or until are both given"),
        ({"study": "Thorax"}, "study: is neither a study id nor a StudyInstanceUID"),
        ({"since": "soon"}, "since: is no moment; write 12h or 30d"),
        ({"since": "1d", "until": "later"}, "until: is no moment"),
        ({"since": "1d", "until": "2d"}, "since: is not before until"),
        ({"since": "2024-07-02T00:00Z"}, "since: is not before until"),
        ({"study": STUDY, "priority": 6}, "priority: 6 is not 0 to 5"),
        ({"study": STUDY, "priority": -1}, "priority: -1 is not 0 to 5"),
        ({"study": STUDY, "note": "two\nlines"}, "note: is not one line"),
        ({"study": STUDY, "note": "x" * 101}, "note: is longer than 100 characters"),
        ({"study": STUDY, "receptions": "oldest"}, "receptions: is neither newest nor all"),
    ],
)
def test_what_cannot_be_meant_is_told_in_one_line(parameters: dict[str, Any], told: str):
    with pytest.raises(RequestError) as error:
        read(**parameters)

    assert str(error.value).startswith(told)
    assert len(str(error.value).splitlines()) == 1


def test_a_patients_name_in_place_of_an_id_is_not_repeated():
    with pytest.raises(RequestError) as error:
        read(study=CANARY_NAME)

    assert leaked_canaries(str(error.value)) == []


def test_ids_are_told_from_uids_by_their_form():
    assert is_study_id(STUDY)
    assert not is_uid(STUDY)
    assert is_uid("1.2.3")
    assert is_uid("1.02.3")  # no valid UID, and yet what some device sends
    assert not is_study_id("1.2.3")
    assert not is_uid("12345678")
    assert not is_uid("1.2." + "3" * 64)
