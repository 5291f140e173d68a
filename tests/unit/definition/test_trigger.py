"""The conditions of a trigger: tags in three spellings, patterns, and what is refused."""

from __future__ import annotations

import pytest
from pydantic import TypeAdapter, ValidationError

from flows_engine.definition.trigger import Pattern, PatternTimeoutError, Trigger, parse_tag

TRIGGER = TypeAdapter(Trigger)


@pytest.mark.parametrize("written", ["Modality", "00080060", "(0008,0060)", "(0008, 0060)", " Modality "])
def test_a_tag_has_three_spellings(written: str) -> None:
    assert parse_tag(written) == "00080060"


def test_letters_of_a_number_are_in_upper_case() -> None:
    assert parse_tag("7fe000aB") == "7FE000AB"


@pytest.mark.parametrize("written", ["0008 0060", "(00080060", "0008,0060", "8,60", "0008006", ""])
def test_what_only_looks_like_a_tag_is_refused(written: str) -> None:
    with pytest.raises(ValueError, match="no DICOM keyword"):
        parse_tag(written)


@pytest.mark.parametrize("written", ["PixelData", "7FE00010", "ReferencedSeriesSequence", "EncapsulatedDocument"])
def test_a_tag_without_text_is_refused(written: str) -> None:
    with pytest.raises(ValueError, match="no text to match"):
        parse_tag(written)


@pytest.mark.parametrize("written", ["00091001", "TransferSyntaxUID", "InstanceNumber", "OffendingElement"])
def test_private_file_meta_number_and_tag_elements_can_be_matched(written: str) -> None:
    assert len(parse_tag(written)) == 8


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
        ("CT", "mapping of DICOM tags"),
        ({"Modality": "CT", "00080060": "MR"}, "same tag as Modality"),
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


@pytest.mark.parametrize(
    ("written", "meant"),
    [("Modalty", "Modality"), ("seriesDescription", "SeriesDescription"), ("SopClassUID", "SOPClassUID")],
)
def test_a_misspelt_keyword_is_answered_with_the_right_one(written: str, meant: str) -> None:
    with pytest.raises(ValueError, match=f"did you mean {meant}"):
        parse_tag(written)


def test_a_trigger_of_thousands_of_wrong_tags_is_answered_with_the_first_few() -> None:
    with pytest.raises(ValidationError) as caught:
        TRIGGER.validate_python({f"Seriez{number}": "x" for number in range(5000)})

    assert caught.value.error_count() == 10


def test_a_long_key_is_shown_shortened() -> None:
    with pytest.raises(ValueError, match="no DICOM keyword") as caught:
        parse_tag("x" * 100_000)

    assert len(str(caught.value)) < 200
