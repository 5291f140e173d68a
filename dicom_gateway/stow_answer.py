"""What became of the instances of a Store request -> HTTP status and DICOM JSON (PS3.18 10.5.3, annex I). Pure."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

_SUCCESS: Final = 0x0000
_OUT_OF_RESOURCES: Final = 0xA700

_REFERENCED_SOP_CLASS_UID: Final = "00081150"
_REFERENCED_SOP_INSTANCE_UID: Final = "00081155"
_RETRIEVE_URL: Final = "00081190"
_FAILURE_REASON: Final = "00081197"
_FAILED_SOP_SEQUENCE: Final = "00081198"
_REFERENCED_SOP_SEQUENCE: Final = "00081199"
_OTHER_FAILURES_SEQUENCE: Final = "0008119A"


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of one part, as a DIMSE status. Both UIDs are empty where it did not say whose instance it is."""

    status: int
    sop_class_uid: str = ""
    sop_instance_uid: str = ""


def http_status(outcomes: Sequence[Outcome]) -> int:
    """Return 200 where all are stored, 202 where some are, 507 where the disk was full for all, else 409."""
    stored = sum(outcome.status == _SUCCESS for outcome in outcomes)
    if stored:
        return 200 if stored == len(outcomes) else 202
    return 507 if all(outcome.status == _OUT_OF_RESOURCES for outcome in outcomes) else 409


def json_body(outcomes: Sequence[Outcome]) -> bytes:
    """Return the Store Instances Response Module. Nothing can be retrieved here: every Retrieve URL is empty."""
    body: dict[str, Any] = {_RETRIEVE_URL: {"vr": "UR"}}
    sequences = {
        _REFERENCED_SOP_SEQUENCE: [
            {**_reference(outcome), _RETRIEVE_URL: {"vr": "UR"}} for outcome in outcomes if outcome.status == _SUCCESS
        ],
        _FAILED_SOP_SEQUENCE: [
            {**_reference(outcome), **_reason(outcome)}
            for outcome in outcomes
            if outcome.status != _SUCCESS and outcome.sop_instance_uid
        ],
        _OTHER_FAILURES_SEQUENCE: [
            _reason(outcome) for outcome in outcomes if outcome.status != _SUCCESS and not outcome.sop_instance_uid
        ],
    }
    for tag, items in sequences.items():
        if items:
            body[tag] = {"vr": "SQ", "Value": items}
    return json.dumps(body).encode()


def _reference(outcome: Outcome) -> dict[str, Any]:
    return {
        _REFERENCED_SOP_CLASS_UID: {"vr": "UI", "Value": [outcome.sop_class_uid]},
        _REFERENCED_SOP_INSTANCE_UID: {"vr": "UI", "Value": [outcome.sop_instance_uid]},
    }


def _reason(outcome: Outcome) -> dict[str, Any]:
    return {_FAILURE_REASON: {"vr": "US", "Value": [outcome.status]}}
