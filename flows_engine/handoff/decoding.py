"""One encoded element -> its values as text. Pure, and made for hostile bytes."""

from __future__ import annotations

import struct
from functools import lru_cache
from typing import Final

from pydicom.charset import decode_bytes, default_encoding, python_encoding
from pydicom.valuerep import PN_DELIMS, TEXT_VR_DELIMS

Element = tuple[str, bytes]
"""Value representation and value of one searchable element, as it was encoded. A plain tuple, since there are a hundred
an instance: one with names takes three times as long to make."""

LONGEST_VALUE_BYTES: Final = 16 * 1024
_TEXT: Final = frozenset({"LO", "LT", "PN", "SH", "ST", "UC", "UT"})
_PLAIN_TEXT: Final = frozenset({"AE", "AS", "CS", "DA", "DS", "DT", "IS", "TM", "UI", "UR"})
_ONE_VALUE: Final = frozenset({"LT", "ST", "UT", "UR"})
_BACKSLASH: Final = 0x5C
_NUMBER_FORMAT: Final = {"US": "H", "SS": "h", "UL": "L", "SL": "l", "UV": "Q", "SV": "q", "FL": "f", "FD": "d"}
SEARCHABLE: Final = _TEXT | _PLAIN_TEXT | frozenset(_NUMBER_FORMAT) | {"AT"}
"""The value representations that have text to search in."""


def decode(element: Element, *, character_sets: bytes, little_endian: bool) -> tuple[str, ...]:
    """Return an element's values as text. Never raises: what cannot be decoded becomes replacement characters.

    Numbers given as text (DS, IS) stay as they were written; binary ones become decimal text; AT becomes ``GGGGEEEE``.
    """
    vr, raw = element[0], element[1][:LONGEST_VALUE_BYTES]
    if vr in _NUMBER_FORMAT:
        return _numbers(raw, vr, little_endian=little_endian) or ("",)
    if vr == "AT":
        parts = struct.iter_unpack("<HH" if little_endian else ">HH", raw[: len(raw) // 4 * 4])
        return tuple(f"{group:04X}{number:04X}" for group, number in parts) or ("",)
    text = _text(raw, vr, character_sets)
    values = (text,) if vr in _ONE_VALUE else tuple(text.split("\\"))
    return tuple(value.strip(" \0") for value in values)


def _numbers(raw: bytes, vr: str, *, little_endian: bool) -> tuple[str, ...]:
    form = ("<" if little_endian else ">") + _NUMBER_FORMAT[vr]
    width = struct.calcsize(form)
    numbers = struct.iter_unpack(form, raw[: len(raw) // width * width])
    # Nine digits tell every 32-bit float apart, and hide its noise beyond.
    return tuple(f"{number:.9g}" if vr == "FL" else str(number) for (number,) in numbers)


def _text(raw: bytes, vr: str, character_sets: bytes) -> str:
    if raw.isascii() and b"\x1b" not in raw:
        return raw.decode("ascii")
    if vr not in _TEXT:
        return raw.decode("latin-1")
    encodings = _encodings(character_sets)
    if b"\x1b" not in raw:
        return raw.decode(encodings[0], "replace")
    delimiters = PN_DELIMS if vr == "PN" else TEXT_VR_DELIMS
    try:
        return decode_bytes(raw, encodings, {*delimiters, _BACKSLASH})
    except (LookupError, ValueError, AssertionError):
        return raw.decode("ascii", "replace")


@lru_cache(maxsize=256)
def _encodings(character_sets: bytes) -> tuple[str, ...]:
    """Return Python's names of the character sets (PS3.3 C.12.1.1.2). What is not known there is passed over."""
    names = [name.strip(" \0") for name in character_sets.decode("ascii", "replace").split("\\")]
    known = [python_encoding[name] for name in names if name in python_encoding]
    return tuple(known) or (default_encoding,)
