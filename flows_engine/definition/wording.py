"""What pydantic finds wrong -> a short sentence that a person would write. Pure."""

from __future__ import annotations

from typing import Final

from pydantic_core import ErrorDetails

_LONGEST_QUOTE: Final = 60

_PLAIN: Final = {
    "int_": "is no whole number",
    "float_": "is no number",
    "finite_number": "is no number",
    "bool_": "is neither true nor false",
    "string_too_short": "is empty",
    "string_too_long": "is longer than {max_length} characters",
    "string_": "is not text",
    "path_": "is no path",
    "model_": "is not a mapping of keys to values",
    "dict_": "is not a mapping of keys to values",
    "tuple_": "is not a list",
    "too_short": "is empty",
    "too_long": "has more than {max_length} items",
    "less_than_equal": "is greater than {le}",
    "greater_than_equal": "is less than {ge}",
    "greater_than": "is not greater than {gt}",
    "literal_error": "is not one of {expected}",
}


def reason(details: ErrorDetails) -> str:
    """Return why a value is refused, and, for a plain value, what it says."""
    given = details["input"]
    sentence = _sentence(details)
    if isinstance(given, str | int | float) and quoted(given) not in sentence:
        return f"{sentence}; it says {quoted(given)}"
    return sentence


def quoted(given: object) -> str:
    """Return a value as it can be shown on one line, shortened where it is long."""
    text = repr(given if not isinstance(given, str) else given[: _LONGEST_QUOTE + 1])
    return text if len(text) <= _LONGEST_QUOTE else f"{text[:_LONGEST_QUOTE]}…"


def _sentence(details: ErrorDetails) -> str:
    kind, context = details["type"], details.get("ctx", {})
    if kind == "value_error":
        return str(context["error"])
    plain = next((sentence for start, sentence in _PLAIN.items() if kind.startswith(start)), None)
    if plain is not None:
        return plain.format(**{name: _number(value) for name, value in context.items()})
    return details["msg"][:1].lower() + details["msg"][1:]


def _number(value: object) -> object:
    return int(value) if isinstance(value, float) and value.is_integer() else value
