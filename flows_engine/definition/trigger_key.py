"""What a trigger has conditions on: a DICOM tag of an instance, or who sent the study."""

from __future__ import annotations

import difflib
import re
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
# What has no text to search in (PS3.5 6.2).
_WITHOUT_TEXT: Final = {"SQ", "OB", "OW", "OD", "OF", "OL", "OV", "UN"}


def parse_key(written: str) -> str:
    """Return a key of a trigger in the one form that stands for it: a tag as ``GGGGEEEE``, or one of ``ORIGIN_KEYS``.

    Raises ``ValueError`` with the reason.
    """
    key = written.strip()
    if key in ORIGIN_KEYS:
        return key
    if key.partition(".")[0].casefold() in {"sender", "called"}:
        close = difflib.get_close_matches(key, ORIGIN_KEYS, n=1, cutoff=0.7)
        hint = f"did you mean {close[0]}?" if close else f"known are {', '.join(ORIGIN_KEYS)}"
        raise ValueError(f"{quoted(written)} says nothing of where a study comes from; {hint}")
    return parse_tag(written)


def parse_tag(written: str) -> str:
    """Return a tag given as keyword, ``GGGGEEEE`` or ``(gggg,eeee)`` as ``GGGGEEEE``. Raises ``ValueError``."""
    numbered = _NUMBERED_TAG.fullmatch(written.strip())
    if numbered:
        number = int("".join(part for part in numbered.groups() if part), 16)
    else:
        known = tag_for_keyword(written.strip())
        # The dictionary lists some retired elements without a keyword: the empty text finds one of them.
        if known is None or not written.strip():
            raise ValueError(f"{quoted(written)} is no DICOM keyword{_suggestion(written)}")
        number = known
    try:
        representation = dictionary_VR(number)
    except KeyError:
        representation = ""  # a private tag: what it holds is known when it comes
    if _WITHOUT_TEXT.intersection(representation.split(" or ")):
        raise ValueError(f"is of type {representation}, which has no text to match; name a tag that has text")
    return f"{number:08X}"


@lru_cache(maxsize=1)
def _keywords() -> tuple[str, ...]:
    return tuple(entry[4] for entry in DicomDictionary.values() if entry[4])


def _suggestion(written: str) -> str:
    start, length = written[:1].casefold(), len(written)
    alike = [keyword for keyword in _keywords() if keyword[:1].casefold() == start and abs(len(keyword) - length) < 5]
    close = difflib.get_close_matches(written, alike, n=1)
    return f"; did you mean {close[0]}?" if close else ", and no tag like GGGGEEEE or (gggg,eeee) either"
