"""What is said of a wrong value: short, with the value, and never pydantic's own words."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import pytest
from pydantic import Field, TypeAdapter, ValidationError

from flows_engine.definition.wording import quoted, reason


@pytest.mark.parametrize(
    ("kind", "value", "said"),
    [
        (int, "x", "is no whole number; it says 'x'"),
        (int, 1.5, "is no whole number; it says 1.5"),
        (float, "soon", "is no number; it says 'soon'"),
        (Annotated[float, Field(allow_inf_nan=False)], "nan", "is no number; it says 'nan'"),
        (bool, "maybe", "is neither true nor false; it says 'maybe'"),
        (str, ["a"], "is not text"),
        (Annotated[str, Field(min_length=1)], "", "is empty; it says ''"),
        (Annotated[str, Field(max_length=2)], "abc", "is longer than 2 characters; it says 'abc'"),
        (Annotated[int, Field(le=5)], 9, "is greater than 5; it says 9"),
        (Annotated[float, Field(le=2678400)], 1e300, "is greater than 2678400; it says 1e+300"),
        (Annotated[int, Field(ge=1)], "0", "is less than 1; it says '0'"),
        (Annotated[float, Field(gt=0.5)], 0.25, "is not greater than 0.5; it says 0.25"),
        (Literal["hold", "process"], "maybe", "is not one of 'hold' or 'process'; it says 'maybe'"),
        (dict[str, str], "a", "is not a mapping of keys to values; it says 'a'"),
        (tuple[str, ...], {"a": 1}, "is not a list"),
        (Annotated[tuple[str, ...], Field(min_length=1)], (), "is empty"),
        (Annotated[tuple[str, ...], Field(max_length=1)], ("a", "b"), "has more than 1 items"),
    ],
)
def test_a_finding_is_a_sentence(kind: Any, value: object, said: str) -> None:
    with pytest.raises(ValidationError) as caught:
        TypeAdapter(kind).validate_python(value)

    [details] = caught.value.errors()
    assert reason(details) == said


@pytest.mark.parametrize("value", ["x" * 1_000_000, "\n" * 1000, 10**4000])
def test_a_long_value_is_shortened_and_on_one_line(value: object) -> None:
    assert len(quoted(value)) <= 61
    assert quoted(value).endswith("…")
    assert "\n" not in quoted(value)


def test_a_short_value_is_shown_whole() -> None:
    assert quoted("x" * 58) == repr("x" * 58)
