from __future__ import annotations

import json

import pytest

from dicom_gateway.stow_answer import Outcome, http_status, json_body

STORED, MISMATCH, FULL = Outcome(0, "1.2", "1.2.3"), Outcome(0xA900, "1.2", "1.2.4"), Outcome(0xA700, "1.2", "1.2.5")


@pytest.mark.parametrize(
    ("outcomes", "status"),
    [
        ([STORED, STORED], 200),
        ([STORED, MISMATCH], 202),
        ([STORED, FULL], 202),
        ([MISMATCH], 409),
        ([MISMATCH, FULL], 409),
        ([FULL, FULL], 507),
    ],
)
def test_the_status_tells_all_some_or_none(outcomes, status):
    assert http_status(outcomes) == status


def test_the_body_names_what_is_stored_and_what_is_not_with_the_reason():
    body = json.loads(json_body([STORED, MISMATCH, Outcome(0xC000)]))
    (stored,) = body["00081199"]["Value"]
    (failed,) = body["00081198"]["Value"]
    (other,) = body["0008119A"]["Value"]
    assert stored["00081150"] == {"vr": "UI", "Value": ["1.2"]}
    assert stored["00081155"] == {"vr": "UI", "Value": ["1.2.3"]}
    assert failed["00081155"]["Value"] == ["1.2.4"]
    assert failed["00081197"] == {"vr": "US", "Value": [0xA900]}
    assert other == {"00081197": {"vr": "US", "Value": [0xC000]}}


def test_what_is_empty_is_left_out():
    assert set(json.loads(json_body([STORED]))) == {"00081190", "00081199"}
