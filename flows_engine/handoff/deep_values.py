"""An encoded data set -> the values of private elements by their creator, and of those in sequences. Pure.

Hostile bytes are normal here, too: what is nested deeper than a key goes is stepped over, as ``header`` does, and how
much is kept of one instance is bounded.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Final

from pydicom.uid import DeflatedExplicitVRLittleEndian, ExplicitVRBigEndian

from flows_engine.definition.trigger_key import Level, PrivateTag, levels
from flows_engine.handoff.decoding import LONGEST_VALUE_BYTES, SEARCHABLE, decode
from flows_engine.handoff.header import (
    BEGINNING_BYTES,
    ITEM,
    ITEM_END,
    LONGEST_UNKNOWN_BYTES,
    SEQUENCE_END,
    SPECIFIC_CHARACTER_SET,
    UNDEFINED,
    Buffer,
    UnreadableError,
    Walk,
    guessed_vr,
    inflated,
    is_explicit,
    is_private,
    skip_plain,
)

MOST_VALUES: Final = 10_000
"""How many distinct values of one key one instance may have. Contours of a structure set repeat one for each slice."""
MOST_BYTES: Final = 4 * 1024**2
_LONGEST_CREATOR_BYTES: Final = 64
_ITEM_LITTLE_ENDIAN: Final = b"\xfe\xff\x00\xe0"


class TooManyValuesError(ValueError):
    """An instance holds more than is searched. The message names the bound, and quotes no value."""


def deep_values(data_set: Buffer, *, transfer_syntax_uid: str, keys: Iterable[str]) -> dict[str, tuple[str, ...]]:
    """Return the values of each of ``keys`` that the instance has: those of all items, each distinct one once.

    ``keys`` are as ``trigger_key.parse_key`` makes them. A sequence of which a part cannot be read counts as far as it
    can. Raises ``UnreadableError`` where the data set itself ends too soon, and ``TooManyValuesError``.
    """
    if transfer_syntax_uid == DeflatedExplicitVRLittleEndian:
        data_set = inflated(data_set)
    reading = _Reading(data_set, little_endian=transfer_syntax_uid != ExplicitVRBigEndian)
    explicit = is_explicit(data_set, transfer_syntax_uid=transfer_syntax_uid)
    try:
        reading.data_set(_tree(keys), at=0, end=len(data_set), explicit=explicit, character_sets=b"", depth=0)
    except struct.error:
        raise UnreadableError("the data set ends inside an element") from None
    return {key: tuple(values) for key, values in reading.found.items()}


@dataclass(slots=True)
class _Node:
    """What is looked for at one level of a data set."""

    below: dict[Level, _Node] = field(default_factory=dict)
    key: str = ""
    """The key that ends here, if one does."""


def _tree(keys: Iterable[str]) -> _Node:
    root = _Node()
    for key in keys:
        node = root
        for level in levels(key):
            node = node.below.setdefault(level, _Node())
        node.key = key
    return root


class _Reading:
    """Goes through one data set, once, down to where the keys lead."""

    def __init__(self, data: Buffer, *, little_endian: bool) -> None:
        self._data = data
        self._beginning = data if isinstance(data, bytes) else bytes(data[:BEGINNING_BYTES])
        self._little_endian = little_endian
        self._walk = Walk(data, little_endian=little_endian)
        self._bytes = 0
        self.found: dict[str, dict[str, None]] = {}

    def data_set(self, node: _Node, *, at: int, end: int, explicit: bool, character_sets: bytes, depth: int) -> int:
        """Go through the elements from ``at`` to ``end``, or to the end of an open item. Return where it ended."""
        creators: dict[int, str] = {}
        plain = self._beginning if depth == 0 and explicit and self._little_endian else b""
        stop_at = {SPECIFIC_CHARACTER_SET, *(level for level in node.below if isinstance(level, int))}
        while True:
            at = skip_plain(plain, at, end=end, stop_at=stop_at)
            if at >= end or (depth == 0 and self._walk.is_over(at)):
                return at
            tag, vr, length, start = self._walk.head(at, explicit=explicit)
            if tag == ITEM_END and depth:
                return start
            after = None
            for wanted in self._wanted(node, tag, creators):
                if wanted.below:
                    after = self._sequence(
                        wanted, vr, length, start, explicit=explicit, character_sets=character_sets, depth=depth
                    )
                if wanted.key and length != UNDEFINED and start + length <= end:
                    self._keep(wanted.key, tag, vr, self._value(start, length), character_sets)
            if after is None:
                after = self._walk.after_value(vr, length, start, explicit=explicit, depth=depth)
            if after > end:
                raise UnreadableError(f"the element at byte {start} reaches {after - end} bytes beyond its item")
            if tag == SPECIFIC_CHARACTER_SET:
                character_sets = self._value(start, length)
            elif is_private(tag) and 0x10 <= tag & 0xFFFF <= 0xFF:
                creator = self._value(start, min(length, _LONGEST_CREATOR_BYTES + 1))
                creators[tag] = creator.decode("latin-1").strip(" \0")
            at = after

    def _wanted(self, node: _Node, tag: int, creators: dict[int, str]) -> list[_Node]:
        wanted = [node.below[tag]] if tag in node.below else []
        if is_private(tag) and tag & 0xFFFF >= 0x1000:
            creator = creators.get(tag & 0xFFFF0000 | (tag & 0xFF00) >> 8, "")
            by_creator = node.below.get(PrivateTag(group=tag >> 16, creator=creator, number=tag & 0xFF))
            wanted += [by_creator] if by_creator else []
        return wanted

    def _sequence(
        self, node: _Node, vr: str, length: int, start: int, *, explicit: bool, character_sets: bytes, depth: int
    ) -> int | None:
        """Go through the items of a sequence. Return where it ends; None where that is not known, or it is none."""
        if vr not in ("SQ", "UN"):
            return None
        # PS3.5 6.2.2, note 2: an unknown VR is a sequence encoded as implicit VR, if it is one.
        explicit = explicit and vr != "UN"
        if length == UNDEFINED:
            return self._items(node, at=start, end=None, explicit=explicit, character_sets=character_sets, depth=depth)
        if vr == "SQ" or bytes(self._data[start : start + 4]) == _ITEM_LITTLE_ENDIAN:
            end = min(start + length, len(self._data))
            # Nobody has looked into a sequence of known length so far.
            with suppress(UnreadableError, struct.error):
                self._items(node, at=start, end=end, explicit=explicit, character_sets=character_sets, depth=depth)
        return None

    def _items(
        self, node: _Node, *, at: int, end: int | None, explicit: bool, character_sets: bytes, depth: int
    ) -> int:
        def item(at: int, end: int) -> int:
            return self.data_set(
                node, at=at, end=end, explicit=explicit, character_sets=character_sets, depth=depth + 1
            )

        limit = len(self._data) if end is None else end
        while end is None or at < end:
            tag, _, length, start = self._walk.head(at, explicit=False)
            if tag == SEQUENCE_END:
                return start
            if tag != ITEM:
                raise UnreadableError(f"there is no item where one should be, at byte {at}")
            if length == UNDEFINED:
                at = item(start, limit)
                continue
            at = start + length
            if at > limit:
                raise UnreadableError(f"an item reaches {at - limit} bytes beyond its sequence")
            with suppress(UnreadableError, struct.error):
                item(start, at)
        return at

    def _value(self, start: int, length: int) -> bytes:
        return bytes(self._data[start : start + min(length, LONGEST_VALUE_BYTES)])

    def _keep(self, key: str, tag: int, vr: str, raw: bytes, character_sets: bytes) -> None:
        if vr == "UN" and len(raw) <= LONGEST_UNKNOWN_BYTES:
            vr = guessed_vr(tag, raw)
        if vr == "US or SS":
            vr = "US"
        if vr not in SEARCHABLE:
            return
        found = self.found.setdefault(key, {})
        for value in decode((vr, raw), character_sets=character_sets, little_endian=self._little_endian):
            if value in found:
                continue
            self._bytes += len(value)
            if len(found) >= MOST_VALUES or self._bytes > MOST_BYTES:
                raise TooManyValuesError(f"an instance has more than {MOST_VALUES} different values, or MiB of them")
            found[value] = None
