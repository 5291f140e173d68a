"""What an author obviously meant: numbers and booleans where text is wanted, one thing where a list is wanted."""

from __future__ import annotations

import re
from typing import Annotated, Final

from pydantic import AfterValidator, BeforeValidator

MOST_ITEMS: Final = 100
# int() refuses thousands of digits.
_COUNT: Final = re.compile("-?[0-9]{1,18}")

_TRUE = {"true", "yes", "on", "y"}
_FALSE = {"false", "no", "off", "n"}


def as_text(value: object) -> object:
    """Return a number or boolean as the text that YAML writes for it; anything else as it is."""
    if isinstance(value, bool):
        return str(value).lower()
    return str(value) if isinstance(value, int | float) else value


def as_list(value: object) -> object:
    """Return a single text, number or mapping as a list of one; a list, and nothing, as it is.

    Nothing is not an empty list: ``triggers:`` with nothing behind it is a file that is not finished. Raises
    ``ValueError`` for a list longer than any flow needs.
    """
    if isinstance(value, list | tuple) and len(value) > MOST_ITEMS:
        raise ValueError(f"has more than {MOST_ITEMS} items")
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


def truth_count_or_text(value: object) -> object:
    """Return the boolean, the whole number or the text that is meant; 1 is true. Raises ``ValueError`` for the rest."""
    is_count = isinstance(value, int) and not isinstance(value, bool)
    meant = value if is_count else boolean_or_text(value)
    if isinstance(meant, str) and _COUNT.fullmatch(meant):
        meant = int(meant)
    return True if meant == 1 else meant


def without_nul(text: str) -> str:
    """Return ``text``. Raises ``ValueError`` where it holds a NUL, at which programs in C would cut it off."""
    if "\0" in text:
        raise ValueError("holds a NUL character")
    return text


Text = Annotated[str, BeforeValidator(as_text), AfterValidator(without_nul)]
"""Text that may be written as a number or a boolean. It holds no NUL."""
