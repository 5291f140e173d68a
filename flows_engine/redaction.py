"""Keeps a patient out of what a model prints, since models print what they read. Pure.

Names, ids, dates of birth, accession numbers and free-text descriptions of the study at hand are replaced, in any case
and in the usual spellings. It is a net, not a wall: a model that encodes or abbreviates them gets through.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Final

import regex

from flows_engine.handoff.study_store import Fingerprint

REPLACEMENT: Final = "[patient]"

# The confidentiality profile of PS3.15 Annex E names these among what identifies a person.
_NAMES: Final = frozenset({
    "00100010", "00101001", "00101005", "00101060", "00102297", "00080090", "00081048", "00081050", "00081060",
    "00081070", "00321032",
})  # fmt: skip
_IDS: Final = frozenset(
    {"00100020", "00101000", "00101002", "00080050", "00100050", "00200010", "00402016", "00402017"}
)
_DATES: Final = frozenset({"00100030"})
_TEXTS: Final = frozenset({
    "00081030", "0008103E", "00321060", "00400254", "00400007", "00081080", "00101040", "00102154", "001021B0",
    "00104000", "00180015", "00204000", "00321064", "00181030", "00080080", "00080081",
})  # fmt: skip

_MIN_NAME: Final = 3
_MIN_OTHER: Final = 4
_MIN_INSIDE_A_WORD: Final = 6


class Redactor:
    """Replaces every one of ``values`` in a line by ``[patient]``.

    Upper and lower case are the same. A value of fewer than 6 characters is replaced only where it stands alone, so
    that a patient called Lee does not cut ``sleep`` in two.
    """

    def __init__(self, values: Iterable[str]) -> None:
        wanted = {value.strip() for value in values}
        anywhere = sorted((v for v in wanted if len(v) >= _MIN_INSIDE_A_WORD), key=len, reverse=True)
        alone = sorted((v for v in wanted if _MIN_NAME <= len(v) < _MIN_INSIDE_A_WORD), key=len, reverse=True)
        # An empty list would match between any two characters.
        branches = [
            *([r"\L<anywhere>"] if anywhere else []),
            *([r"(?<![^\W_])\L<alone>(?![^\W_])"] if alone else []),
        ]
        lists = {name: words for name, words in (("anywhere", anywhere), ("alone", alone)) if words}
        self._pattern = regex.compile("|".join(branches), regex.IGNORECASE, **lists) if branches else None

    def __call__(self, line: str) -> str:
        """Return ``line`` without the patient."""
        return line if self._pattern is None else str(self._pattern.sub(REPLACEMENT, line))


def redactor_for(fingerprint: Fingerprint) -> Redactor:
    """Return a redactor for the study that ``fingerprint`` describes."""
    return Redactor(_identifying(fingerprint))


def _identifying(fingerprint: Fingerprint) -> Iterator[str]:
    for tag, column in fingerprint.columns.items():
        for value in (text.strip() for values in column.values for text in values):
            if tag in _NAMES:
                yield from _spellings(value)
            elif tag in _DATES:
                yield from _dates(value)
            elif tag in _IDS or tag in _TEXTS:
                yield from (value,) if len(value) >= _MIN_OTHER else ()


def _spellings(name: str) -> Iterator[str]:
    # PS3.5 6.2.1.1: alphabetic=ideographic=phonetic, and in each family^given^middle^prefix^suffix.
    for group in name.split("="):
        parts = [part.strip() for part in group.split("^") if part.strip()]
        words = [word for part in parts for word in part.split()]
        yield from (word for word in {*parts, *words} if len(word) >= _MIN_NAME)
        for order in (parts, [*parts[1:], *parts[:1]], parts[:2], parts[1::-1]):
            for separator in ("^", " ", "_", "-", ".", ",", ", ", ""):
                joined = separator.join(order)
                if len(joined) >= _MIN_OTHER:
                    yield joined


def _dates(date: str) -> Iterator[str]:
    if len(date) < _MIN_OTHER:
        return
    yield date
    if len(date) == len("YYYYMMDD") and date.isdigit():
        year, month, day = date[:4], date[4:6], date[6:]
        for separator in "-./":
            for order in ((year, month, day), (day, month, year), (month, day, year)):
                yield separator.join(order)
