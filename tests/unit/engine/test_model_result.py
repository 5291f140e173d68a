from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from flows_engine.definition.schema import FlowDefinition
from flows_engine.model_result import UnusableResultError, choice, read_result
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


def test_none_is_nothing(tmp_path: Path) -> None:
    assert read_result(tmp_path, redact=REDACT) == ""


def test_it_is_told_without_the_patient_wherever_that_stands(tmp_path: Path) -> None:
    said = {"volume": 1.5, "who": ["Doe^John"], "Doe^John": {"id": "4711-0815"}, "none": None, "yes": True}
    (tmp_path / "result.json").write_text(json.dumps(said))
    told = json.loads(read_result(tmp_path, redact=REDACT))
    assert told == {"volume": 1.5, "who": ["[patient]"], "[patient]": {"id": "[patient]"}, "none": None, "yes": True}


def test_a_number_may_be_an_id(tmp_path: Path) -> None:
    (tmp_path / "result.json").write_text('{"id": 47110815, "other": 12}')
    assert json.loads(read_result(tmp_path, redact=Redactor(["47110815"]))) == {"id": "[patient]", "other": 12}


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
        read_result(tmp_path, redact=REDACT)


def chosen(said: dict[str, Any] | None, *decides: str) -> tuple[str | None, list[str], bool, tuple[str, ...]]:
    made = choice(definition(*decides), json.dumps(said) if said is not None else "")
    return made.skip_reason, [node.ae_title for node in made.nodes], made.to_sender, made.passed_over


EVERYONE = ["PACS", "RESEARCH"]


def test_without_a_word_everyone_gets_it() -> None:
    for said in (None, {}, {"volume": 3}):
        assert chosen(said, "skip_send", "destinations") == (None, EVERYONE, True, ())


def test_what_the_flow_does_not_leave_to_its_model_is_passed_over() -> None:
    said = {"skip_send": True, "destinations": ["PACS"]}
    assert chosen(said) == (None, EVERYONE, True, ("skip_send", "destinations"))
    assert chosen(said, "destinations") == (None, ["PACS"], False, ("skip_send",))
    assert chosen(said, "skip_send") == ("it gave no reason", [], False, ("destinations",))


def test_nothing_is_sent_and_the_reason_is_one_line() -> None:
    said = {"skip_send": True, "reason": "no\ncontrast " + "x" * 500}
    reason, nodes, to_sender, _ = chosen(said, "skip_send")
    assert (nodes, to_sender) == ([], False)
    assert reason is not None
    assert reason.startswith("no contrast x")
    assert len(reason) == 200


def test_it_may_choose_among_the_flows_destinations() -> None:
    assert chosen({"destinations": ["RESEARCH"]}, "destinations") == (None, ["RESEARCH"], False, ())
    assert chosen({"destinations": ["sender"]}, "destinations") == (None, [], True, ())
    assert chosen({"skip_send": False, "destinations": ["PACS"]}, "skip_send", "destinations")[1] == ["PACS"]


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
        chosen(said, "skip_send", "destinations")
    assert "Doe" not in str(caught.value)


def test_a_flow_without_the_key_dumps_as_before() -> None:
    assert "model_decides" not in definition().model_dump()
    assert definition("skip_send").model_dump(mode="json")["model_decides"] == ["skip_send"]
