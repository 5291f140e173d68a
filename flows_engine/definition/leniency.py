"""What an author obviously meant: numbers and booleans where text is wanted, one thing where a list is wanted."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BeforeValidator

_TRUE = {"true", "yes", "on"}
_FALSE = {"false", "no", "off"}


def as_text(value: Any) -> Any:
    """Return a number or boolean as the text that YAML writes for it; anything else as it is."""
    if isinstance(value, bool):
        return str(value).lower()
    return str(value) if isinstance(value, int | float) else value


def as_list(value: Any) -> Any:
    """Return a single text, number or mapping as a list of one, nothing as an empty list, and a list as it is."""
    if value is None:
        return []
    return value if isinstance(value, list | tuple) else [value]


def boolean_or_text(value: Any) -> Any:
    """Return the boolean that a text means, or the text."""
    if not isinstance(value, str):
        return value
    word = value.strip().lower()
    if word in _TRUE:
        return True
    return False if word in _FALSE else value.strip()


Text = Annotated[str, BeforeValidator(as_text)]
"""Text that may be written as a number or a boolean."""
