"""What an author obviously meant."""

from __future__ import annotations

import pytest

from flows_engine.definition.leniency import (
    MOST_ITEMS,
    as_list,
    as_text,
    boolean_or_text,
    truth_count_or_text,
    without_nul,
)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0, "0"),
        (1.02, "1.02"),
        (True, "true"),
        (False, "false"),
        ("007", "007"),
        ("", ""),
        (None, None),
        (["a"], ["a"]),
    ],
)
def test_a_number_or_boolean_is_the_text_that_yaml_writes_for_it(value: object, text: object) -> None:
    assert as_text(value) == text


@pytest.mark.parametrize(
    ("value", "listed"),
    [("a", ["a"]), (5, [5]), ({"a": 1}, [{"a": 1}]), ([], []), (["a"], ["a"]), (("a",), ("a",)), (None, None)],
)
def test_one_thing_is_a_list_of_one_and_nothing_is_not_an_empty_list(value: object, listed: object) -> None:
    assert as_list(value) == listed


def test_a_list_may_be_long_but_not_endless() -> None:
    assert as_list(["a"] * MOST_ITEMS) == ["a"] * MOST_ITEMS
    with pytest.raises(ValueError, match="more than 100 items"):
        as_list(["a"] * (MOST_ITEMS + 1))


@pytest.mark.parametrize(
    ("value", "meant"),
    [
        (True, True),
        ("True", True),
        (" yes ", True),
        ("ON", True),
        ("False", False),
        ("n", False),
        ("off", False),
        (" a100 ", "a100"),
    ],
)
def test_a_word_is_a_boolean_where_it_means_one(value: object, meant: bool | str) -> None:
    assert boolean_or_text(value) == meant


@pytest.mark.parametrize("value", [0, 1, 1.5, ["a100"], {}, None])
def test_what_is_no_word_is_refused(value: object) -> None:
    with pytest.raises(ValueError, match="neither true nor false nor a word"):
        boolean_or_text(value)


@pytest.mark.parametrize(
    ("value", "meant"),
    [
        (True, True),
        ("off", False),
        (1, True),
        (" 1 ", True),
        (2, 2),
        ("02", 2),
        (0, 0),
        ("-1", -1),
        (" a100 ", "a100"),
        ("2x", "2x"),
        ("²", "²"),
        ("9" * 5000, "9" * 5000),
    ],
)
def test_a_number_is_a_count_and_one_is_true(value: object, meant: object) -> None:
    found = truth_count_or_text(value)
    assert (type(found), found) == (type(meant), meant)


@pytest.mark.parametrize("value", [1.0, ["a100"], {}, None])
def test_what_is_no_count_either_is_refused(value: object) -> None:
    with pytest.raises(ValueError, match="neither true nor false nor a word"):
        truth_count_or_text(value)


def test_text_holds_no_nul() -> None:
    assert without_nul("a\nb") == "a\nb"
    with pytest.raises(ValueError, match="NUL"):
        without_nul("a\0b")
