"""The conditions of a trigger: patterns, and what is refused."""

from __future__ import annotations

import pytest
from pydantic import TypeAdapter, ValidationError

from flows_engine.definition.trigger import Pattern, PatternTimeoutError, Trigger

TRIGGER = TypeAdapter(Trigger)


@pytest.mark.parametrize(
    ("pattern", "value", "found"),
    [
        ("Head|Neck", "the neck and Neck", True),
        ("^CT$", "CTX", False),
        ("(?i)ct", "CT", True),
        ("~Phantom", "Phantom", True),
    ],
)
def test_a_pattern_is_searched_anywhere_and_a_tilde_only_marks_it(pattern: str, value: str, found: bool) -> None:
    parsed = Pattern.parse(pattern)

    assert parsed.search(value) is found
    assert parsed.negated is pattern.startswith("~")
    assert parsed.written == pattern


def test_an_escaped_tilde_is_a_tilde() -> None:
    assert Pattern.parse(r"\~x") == Pattern(text=r"\~x", negated=False)


@pytest.mark.parametrize(
    ("pattern", "reason"),
    [
        ("(", "not a regular expression"),
        ("", "empty"),
        ("~", "empty"),
        ("a" * 1001, "longer than"),
        ("(" * 490 + "a" + ")" * 490, "nested"),
    ],
)
def test_a_pattern_that_cannot_be_used_is_refused_when_it_is_read(pattern: str, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        Pattern.parse(pattern)


def test_a_pattern_that_takes_too_long_ends_in_an_error() -> None:
    with pytest.raises(PatternTimeoutError, match="more simply"):
        Pattern.parse("(a|aa)+$").search("a" * 200 + "b")


def test_a_trigger_is_dumped_as_it_was_written() -> None:
    trigger = TRIGGER.validate_python({"Modality": "CT", "(0008,1030)": ["AutoSeg", "~Phantom"]})

    assert trigger.model_dump(mode="json") == {"Modality": ["CT"], "(0008,1030)": ["AutoSeg", "~Phantom"]}
    assert TRIGGER.validate_python(trigger.model_dump(mode="json")) == trigger
    assert TRIGGER.validate_python(trigger) == trigger
    assert [condition.tag for condition in trigger.conditions] == ["00080060", "00081030"]


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        ({}, "empty and would fire on everything"),
        ({"min_instances": 3}, "empty and would fire on everything"),
        ({"Modality": "CT", "min_instances": 0}, "is no number of instances"),
        ({"Modality": "CT", "min_instances": -1}, "is no number of instances"),
        ({"Modality": "CT", "min_instances": True}, "is no number of instances"),
        ({"Modality": "CT", "min_instances": "many"}, "is no number of instances"),
        ({"Modality": "CT", "min_instances": None}, "is no number of instances"),
        ({"Modality": "CT", "min_instances": [1]}, "is no number of instances"),
        ({"Modality": "CT", "min_instances": "9" * 30}, "is no number of instances"),
        ("CT", "mapping of DICOM tags"),
        ({"Modality": "CT", "00080060": "MR"}, "same tag as Modality"),
        ({"Sender.Host": "a", " Sender.Host ": "b"}, "same tag as Sender.Host"),
        ({"Modality": []}, "needs a pattern"),
        ({"Modality": None}, "needs a pattern"),
        ({"Modality": {"a": "b"}}, "needs a pattern"),
        ({"Modality": ["CT", None]}, "needs a pattern"),
    ],
)
def test_a_trigger_that_says_nothing_clear_is_refused(value: object, reason: str) -> None:
    with pytest.raises(ValidationError, match=reason):
        TRIGGER.validate_python(value)


@pytest.mark.parametrize(
    "pattern", ["((a{1000}){1000}){1000}", "a{4000000000}", "(?:(?:a{99}){99}){99,}", "(?x)(a{ 1000 }){ 1000 }{ 9 }"]
)
def test_a_pattern_that_would_take_all_memory_is_refused_before_it_is_compiled(pattern: str) -> None:
    with pytest.raises(ValueError, match=r"the counts in \{…\}"):
        Pattern.parse(pattern)


@pytest.mark.parametrize("pattern", [r"^[0-9a-f]{8}-([0-9a-f]{4}-){3}[0-9a-f]{12}$", r"\d{4}-\d{2}-\d{2}", "a{0,500}"])
def test_counts_that_are_meant_are_taken(pattern: str) -> None:
    assert Pattern.parse(pattern).text == pattern


@pytest.mark.parametrize("pattern", [r"\p{Lu}", "(?R)", "(?i:a)(?i)", r"(?|a|b)", "(?<=a+)b"])
def test_what_is_no_expression_of_python_is_refused(pattern: str) -> None:
    with pytest.raises(ValueError, match="is not a regular expression"):
        Pattern.parse(pattern)


def test_a_trigger_of_thousands_of_wrong_tags_is_answered_with_the_first_few() -> None:
    with pytest.raises(ValidationError) as caught:
        TRIGGER.validate_python({f"Seriez{number}": "x" for number in range(5000)})

    assert caught.value.error_count() == 10


def test_a_number_of_instances_is_dumped_where_it_says_something() -> None:
    trigger = TRIGGER.validate_python({"Modality": "CT", "min_instances": "40"})
    assert trigger.min_instances == 40
    assert trigger.model_dump(mode="json") == {"Modality": ["CT"], "min_instances": 40}
    assert TRIGGER.validate_python(trigger.model_dump(mode="json")) == trigger

    one = TRIGGER.validate_python({"Modality": "CT", "min_instances": 1})
    assert one == TRIGGER.validate_python({"Modality": "CT"})
    assert one.model_dump(mode="json") == {"Modality": ["CT"]}
