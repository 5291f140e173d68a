"""Texts and numbers of a form that Docker's engine understands: sizes, users, processors."""

from __future__ import annotations

import re
from typing import Annotated, Final

from pydantic import AfterValidator, BeforeValidator, Field

from flows_engine.definition.leniency import Text

_SIZE: Final = re.compile(r"[0-9]{1,15}(\.[0-9]{1,15})?\s*([bkmgBKMG][bB]?)?")
_USER: Final = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*(:[A-Za-z0-9_][A-Za-z0-9_.-]*)?")
_CPUS: Final = re.compile(r"[0-9]+(-[0-9]+)?(,[0-9]+(-[0-9]+)?)*")
LARGEST: Final = 2**63 - 1
"""The engine's numbers have 64 bits."""


def matching(form: re.Pattern[str], reason: str) -> AfterValidator:
    """Return what refuses, with ``reason``, a text that does not match ``form`` as a whole."""

    def check(text: str) -> str:
        if not form.fullmatch(text):
            raise ValueError(reason)
        return text

    return AfterValidator(check)


def _size(value: object) -> object:
    if value is not None and (isinstance(value, bool) or not _SIZE.fullmatch(str(value).strip())):
        raise ValueError("is no size; write a number of bytes, or one with a unit, like 8g or 512m")
    return value if value is None else str(value).strip()


def _size_or_unlimited(value: object) -> object:
    return "-1" if str(value).strip() == "-1" else _size(value)


Size = Annotated[str, BeforeValidator(_size)]
SizeOrUnlimited = Annotated[str, BeforeValidator(_size_or_unlimited)]
User = Annotated[Text, matching(_USER, "is no user like 1000, 1000:1000 or name")]
Processors = Annotated[Text, matching(_CPUS, "is no list of processors like 0-3 or 0,2")]
Amount = Annotated[int, Field(ge=0, le=LARGEST)]
Signed = Annotated[int, Field(ge=-LARGEST, le=LARGEST)]
