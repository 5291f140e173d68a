"""What an author obviously meant: numbers and booleans where text is wanted, one thing where a list is wanted."""

from __future__ import annotations

from typing import Annotated

from pydantic import BeforeValidator

_TRUE = {"true", "yes", "on"}
_FALSE = {"false", "no", "off"}


def as_text(value: object) -> object:
    """Return a number or boolean as the text that YAML writes for it; anything else as it is."""
    if isinstance(value, bool):
        return str(value).lower()
    return str(value) if isinstance(value, int | float) else value


def as_list(value: object) -> object:
    """Return a single text, number or mapping as a list of one; a list, and nothing, as it is.

    Nothing is not an empty list: ``triggers:`` with nothing behind it is a file that is not finished.
    """
    return value if value is None or isinstance(value, list | tuple) else [value]


def boolean_or_text(value: object) -> object:
    """Return the boolean that a text means, or the text. Raises ``ValueError`` for what is neither."""
    if isinstance(value, bool):
        return value
    if not isinstance(value, str):
        # pydantic turns a ValueError into a finding, and lets a TypeError through.
        raise ValueError("is neither true nor false nor a word")  # noqa: TRY004
    word = value.strip().lower()
    if word in _TRUE:
        return True
    return False if word in _FALSE else value.strip()


Text = Annotated[str, BeforeValidator(as_text)]
"""Text that may be written as a number or a boolean."""
