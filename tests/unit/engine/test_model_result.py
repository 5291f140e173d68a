from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from flows_engine.definition.schema import FlowDefinition
from flows_engine.model_result import Decision, UnusableResultError, decision, read_result, shown
from flows_engine.redaction import Redactor

REDACT = Redactor(["Doe^John", "4711-0815"])


def definition(*decides: str, **keys: Any) -> FlowDefinition:
    nodes = [{"host": "h", "port": 104, "ae_title": title} for title in ("PACS", "RESEARCH")]
    models = [{"docker_kwargs": {"image": "a"}}]
    return FlowDefinition.model_validate(
        {
            "name": "A",
            "triggers": [],
            "models": models,
            "destinations": nodes,
            "return_to_sender_on_port": [104],
            "model_decides": decides,
            **keys,
        }
    )


def told(folder: Path, redact: Redactor = REDACT) -> Any:
    return json.loads(shown(read_result(folder), redact=redact))


def test_none_is_nothing(tmp_path: Path) -> None:
    assert read_result(tmp_path) == {}
    assert shown({}, redact=REDACT) == ""


def test_it_is_told_without_the_patient_wherever_that_stands(tmp_path: Path) -> None:
    said = {"volume": 1.5, "who": ["Doe^John"], "Doe^John": {"id": "4711-0815"}, "none": None, "yes": True}
    (tmp_path / "result.json").write_text(json.dumps(said))
    assert told(tmp_path) == {
        "volume": 1.5,
        "who": ["[patient]"],
        "[patient]": {"id": "[patient]"},
        "none": None,
        "yes": True,
    }


def test_a_number_may_be_an_id(tmp_path: Path) -> None:
    (tmp_path / "result.json").write_text('{"id": 47110815, "other": 12}')
    assert told(tmp_path, Redactor(["47110815"])) == {"id": "[patient]", "other": 12}


def test_half_a_character_is_none(tmp_path: Path) -> None:
    (tmp_path / "result.json").write_text(r'{"a": "x\ud800", "b": "\ud83d\ude00"}')
    assert told(tmp_path) == {"a": "x?", "b": "\U0001f600"}


def _link(path: Path) -> None:
    path.symlink_to("/etc/passwd")


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (lambda path: path.write_text("{"), "is no JSON"),
        (lambda path: path.write_bytes(b"\xff\xfe{}"), "is no JSON"),
        (lambda path: path.write_text("[1]"), "is no JSON object"),
        (lambda path: path.write_text('{"a": "' + "x" * 70_000 + '"}'), "is larger than 64 KiB"),
        (lambda path: path.write_text('{"a": ' * 20 + "1" + "}" * 20), "is nested deeper than 16"),
        (lambda path: path.write_text("[" * 60_000), "is no JSON"),
        (_link, "cannot be read"),
        (lambda path: path.mkdir(), "cannot be read"),
        (os.mkfifo, "cannot be read"),
    ],
)
def test_what_is_no_result_is_told(tmp_path: Path, make: Any, reason: str) -> None:
    make(tmp_path / "result.json")
    with pytest.raises(UnusableResultError, match=reason):
        read_result(tmp_path)


def decided(said: dict[str, Any], *decides: str, redact: Redactor = REDACT) -> Decision:
    return decision(definition(*decides), said, redact=redact)


def test_without_a_word_everyone_gets_it() -> None:
    for said in ({}, {"volume": 3}, {"skip_send": False}):
        assert decided(said, "skip_send", "destinations") == Decision()


def test_what_the_flow_does_not_leave_to_its_model_is_passed_over() -> None:
    said = {"skip_send": True, "destinations": ["PACS"]}
    assert decided(said) == Decision(passed_over=("skip_send", "destinations"))
    assert decided(said, "destinations") == Decision(destinations=("PACS",), passed_over=("skip_send",))
    assert decided(said, "skip_send") == Decision(skip_reason="it gave no reason", passed_over=("destinations",))


def test_the_reason_is_one_line_without_the_patient_and_without_control_characters() -> None:
    said = {"skip_send": True, "reason": "no\ncontrast\x1b[31m\x00 for Doe^John " + "x" * 500}
    reason = decided(said, "skip_send").skip_reason
    assert reason is not None
    assert reason.startswith(r"no contrast\x1b[31m\x00 for [patient] x")
    assert len(reason) == 200


def test_it_may_choose_among_the_flows_destinations() -> None:
    assert decided({"destinations": ["RESEARCH"]}, "destinations").destinations == ("RESEARCH",)
    assert decided({"destinations": ["sender"]}, "destinations").destinations == ("sender",)
    assert decided({"skip_send": False, "destinations": ["PACS"]}, "skip_send", "destinations").destinations == (
        "PACS",
    )


def test_a_patient_of_the_same_name_changes_nothing_that_is_decided() -> None:
    names = Redactor(["Skip", "Send", "Sender", "PACS", "RESEARCH"])
    assert decided({"skip_send": True}, "skip_send", redact=names).skip_reason is not None
    chosen = decided({"destinations": ["PACS", "sender"]}, "destinations", redact=names)
    assert chosen.destinations == ("PACS", "sender")


@pytest.mark.parametrize(
    ("said", "reason"),
    [
        ({"skip_send": "yes"}, "neither true nor false"),
        ({"destinations": "PACS"}, "is no list"),
        ({"destinations": []}, "is no list"),
        ({"destinations": [1]}, "is no list"),
        (
            {"destinations": ["Doe^John"]},
            "names 1 destinations that the flow does not have; it has PACS, RESEARCH, s",
        ),
    ],
)
def test_what_it_cannot_mean_is_told_without_its_text(said: dict[str, Any], reason: str) -> None:
    with pytest.raises(UnusableResultError, match=reason) as caught:
        decided(said, "skip_send", "destinations")
    assert "Doe" not in str(caught.value)


def test_a_flow_without_the_key_dumps_as_before() -> None:
    assert "model_decides" not in definition().model_dump()
    assert definition("skip_send").model_dump(mode="json")["model_decides"] == ["skip_send"]
