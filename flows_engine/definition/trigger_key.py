"""What a trigger has conditions on: a DICOM tag of an instance, at whatever depth, or who sent the study.

Each key has one form that stands for it, so that two that mean the same are seen to::

    00080060                          a tag at the top of an instance
    00400275.00400007                 a tag in the items of a sequence, and so on
    (0029,"SIEMENS CSA HEADER",10)    an element of the block that its creator reserved (PS3.5 7.8.1); also in a path
"""

from __future__ import annotations

import difflib
import re
from dataclasses import dataclass
from functools import lru_cache
from typing import Final

from pydicom._dicom_dict import DicomDictionary
from pydicom.datadict import dictionary_VR, tag_for_keyword

from flows_engine.definition.wording import quoted

SENDER_AE_TITLE: Final = "Sender.AETitle"
SENDER_HOST: Final = "Sender.Host"
CALLED_AE_TITLE: Final = "Called.AETitle"
ORIGIN_KEYS: Final = (SENDER_AE_TITLE, SENDER_HOST, CALLED_AE_TITLE)
"""Keys that are no tags: they say where the whole study came from."""

_NUMBERED_TAG: Final = re.compile(r"([0-9A-Fa-f]{4})([0-9A-Fa-f]{4})|\(([0-9A-Fa-f]{4}),\s*([0-9A-Fa-f]{4})\)")
_PRIVATE_TAG: Final = re.compile(
    r"""\(\s*([0-9A-Fa-f]{3}[13579BDFbdf])\s*,\s*("[^"]*"|'[^']*')\s*,\s*(?:[xX]{2})?([0-9A-Fa-f]{2})\s*\)"""
)
DEEPEST_PATH: Final = 8
_LONGEST_KEY: Final = 1000
_LONGEST_CREATOR: Final = 64
# What has no text to search in (PS3.5 6.2).
_WITHOUT_TEXT: Final = {"OB", "OW", "OD", "OF", "OL", "OV", "UN"}


@dataclass(frozen=True)
class PrivateTag:
    """An element of whichever block of ``group`` the ``creator`` reserved; ``number`` is the last byte of its tag."""

    group: int
    creator: str
    number: int


Level = int | PrivateTag


def parse_key(written: str) -> str:
    """Return a key of a trigger in the one form that stands for it, or one of ``ORIGIN_KEYS``.

    Raises ``ValueError`` with the reason.
    """
    key = written.strip()
    if key in ORIGIN_KEYS:
        return key
    if key.partition(".")[0].casefold() in {"sender", "called"}:
        close = difflib.get_close_matches(key, ORIGIN_KEYS, n=1, cutoff=0.7)
        hint = f"did you mean {close[0]}?" if close else f"known are {', '.join(ORIGIN_KEYS)}"
        raise ValueError(f"{quoted(written)} says nothing of where a study comes from; {hint}")
    *sequences, last = _parts(key)
    if len(sequences) >= DEEPEST_PATH:
        raise ValueError(f"goes down more than {DEEPEST_PATH} levels; name a tag that is not as deep")
    return ".".join([*map(_sequence, sequences), _private(last) or parse_tag(last)])


@lru_cache(maxsize=1024)
def levels(key: str) -> tuple[Level, ...]:
    """Return the way to what ``key`` names, a key that ``parse_key`` made; nothing for one of ``ORIGIN_KEYS``."""
    return () if key in ORIGIN_KEYS else tuple(map(_level, _parts(key)))


def is_deep(key: str) -> bool:
    """Tell whether a key names what no fingerprint holds: only the files of a study tell."""
    way = levels(key)
    return len(way) > 1 or any(isinstance(level, PrivateTag) for level in way)


def _level(part: str) -> Level:
    private = _PRIVATE_TAG.fullmatch(part)
    if private is None:
        return int(part, 16)
    return PrivateTag(group=int(private[1], 16), creator=private[2][1:-1], number=int(private[3], 16))


def _parts(key: str) -> list[str]:
    """Return the levels of a path as they are written. A dot inside quotes belongs to a name."""
    if len(key) > _LONGEST_KEY:
        raise ValueError(f"{quoted(key)} is no DICOM keyword, nor a path of such")
    parts, quote = [""], ""
    for character in key:
        if character == "." and not quote:
            parts.append("")
            continue
        parts[-1] += character
        if quote:
            quote = "" if character == quote else quote
        elif character in "\"'":
            quote = character
    return parts


def _private(part: str) -> str:
    """Return the form of a private tag that is named by its creator; nothing for what is none."""
    private = _PRIVATE_TAG.fullmatch(part.strip())
    if private is None:
        if '"' in part or "'" in part:
            raise ValueError(
                f'{quoted(part.strip())} is no private tag; write it like (0029,"SIEMENS CSA HEADER",10): an odd group,'
                " the creator in quotes, and the last two digits of the element"
            )
        return ""
    creator = private[2][1:-1].strip()
    if not 1 <= len(creator) <= _LONGEST_CREATOR or "\\" in creator or not creator.isprintable() or '"' in creator:
        raise ValueError(
            f"{quoted(creator)} is no private creator: 1 to {_LONGEST_CREATOR} characters that can be seen"
        )
    return f'({private[1].upper()},"{creator}",{private[3].upper()})'


def _sequence(part: str) -> str:
    private = _private(part)
    if private:
        return private
    number = _number(part)
    representation = _representation(number)
    if representation not in {"", "SQ"}:
        raise ValueError(f"{quoted(part.strip())} is no sequence, so there is no tag in it")
    return f"{number:08X}"


def parse_tag(written: str) -> str:
    """Return a tag given as keyword, ``GGGGEEEE`` or ``(gggg,eeee)`` as ``GGGGEEEE``. Raises ``ValueError``."""
    number = _number(written)
    representation = _representation(number)
    if representation == "SQ":
        raise ValueError("is a sequence, which has no text to match; name a tag in it, with a dot between the two")
    if _WITHOUT_TEXT.intersection(representation.split(" or ")):
        raise ValueError(f"is of type {representation}, which has no text to match; name a tag that has text")
    return f"{number:08X}"


def parse_keyword(written: str) -> str:
    """Return the keyword of a tag that has text, such as a folder is named by. Raises ``ValueError``."""
    parse_tag(written)
    if not tag_for_keyword(written.strip()):
        raise ValueError(f"{quoted(written)} is a tag; write its keyword, like SeriesInstanceUID")
    return written.strip()


def _number(written: str) -> int:
    numbered = _NUMBERED_TAG.fullmatch(written.strip())
    if numbered:
        return int("".join(part for part in numbered.groups() if part), 16)
    known = tag_for_keyword(written.strip())
    # The dictionary lists some retired elements without a keyword: the empty text finds one of them.
    if known is None or not written.strip():
        raise ValueError(f"{quoted(written)} is no DICOM keyword{_suggestion(written)}")
    return known


def _representation(number: int) -> str:
    try:
        return dictionary_VR(number)
    except KeyError:
        return ""  # a private tag: what it holds is known when it comes


@lru_cache(maxsize=1)
def _keywords() -> tuple[str, ...]:
    return tuple(entry[4] for entry in DicomDictionary.values() if entry[4])


def _suggestion(written: str) -> str:
    start, length = written[:1].casefold(), len(written)
    alike = [keyword for keyword in _keywords() if keyword[:1].casefold() == start and abs(len(keyword) - length) < 5]
    close = difflib.get_close_matches(written, alike, n=1)
    return f"; did you mean {close[0]}?" if close else ", and no tag like GGGGEEEE or (gggg,eeee) either"
