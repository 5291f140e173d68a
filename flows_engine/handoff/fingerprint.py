"""Headers of instances -> the fingerprint of a study, column by column."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final

from flows_engine.handoff.decoding import Element, decode
from flows_engine.handoff.header import Header, is_private
from flows_engine.handoff.study_store import Fingerprint, TagColumn

MOST_TAGS: Final = 2000
"""How many distinct tags of a study are kept. Real studies have some hundred."""


@dataclass(slots=True)
class _Column:
    index: list[int] = field(default_factory=list)
    values: list[tuple[str, ...]] = field(default_factory=list)
    by_value: dict[tuple[str, ...], int] = field(default_factory=dict)


@dataclass(slots=True)
class _Encoded:
    """A column as one encoding writes its values: the same bytes are the same value there, and need no decoding."""

    column: _Column
    index: list[int]
    """That of the column."""
    places: dict[Element, int] = field(default_factory=dict)


class FingerprintBuilder:
    """Collects headers while instances arrive, so that little is left to do when the last one has.

    A value that was seen before costs one look-up: it is decoded once, and kept once. Not safe to use from several
    threads.

    At most ``MOST_TAGS`` distinct tags are kept, since each costs something for every instance. Of those beyond, a
    standard one takes the place of a private one; what is left out is counted.
    """

    def __init__(self) -> None:
        self._count = 0
        self._left_out = 0
        self._columns: dict[int, _Column] = {}
        self._private: list[int] = []
        self._encodings: dict[tuple[bytes, bool], dict[int, _Encoded]] = {}

    @property
    def instance_count(self) -> int:
        """How many headers were added."""
        return self._count

    def add(self, header: Header) -> None:
        """Add the header of the next instance. Never raises for what stands in it."""
        count = self._count
        known = self._encodings.setdefault((header.character_sets, header.little_endian), {})
        for tag, element in header.elements.items():
            encoded = known.get(tag) or self._new_encoded(tag, known)
            if encoded is None:
                self._left_out += 1
                continue
            index = encoded.index
            if len(index) < count:
                index.extend([-1] * (count - len(index)))
            place = encoded.places.get(element)
            if place is None:
                place = _new_place(encoded, element, header)
            index.append(place)
        self._left_out += header.left_out_count
        self._count += 1

    def _new_encoded(self, tag: int, known: dict[int, _Encoded]) -> _Encoded | None:
        column = self._columns.get(tag) or self._new_column(tag)
        if column is None:
            return None
        encoded = known[tag] = _Encoded(column, column.index)
        return encoded

    def _new_column(self, tag: int) -> _Column | None:
        private = is_private(tag)
        if len(self._columns) >= MOST_TAGS:
            if private or not self._private:
                return None
            self._give_up(self._private.pop())
        if private:
            self._private.append(tag)
        column = self._columns[tag] = _Column()
        return column

    def _give_up(self, tag: int) -> None:
        column = self._columns.pop(tag)
        self._left_out += len(column.index) - column.index.count(-1)
        for known in self._encodings.values():
            known.pop(tag, None)

    def build(self) -> Fingerprint:
        """Return the fingerprint of all instances added so far."""
        return Fingerprint(
            instance_count=self._count,
            left_out_count=self._left_out,
            columns={
                f"{tag:08X}": TagColumn(
                    values=tuple(column.values),
                    index=(*column.index, *([-1] * (self._count - len(column.index)))),
                )
                for tag, column in sorted(self._columns.items())
            },
        )


def _new_place(encoded: _Encoded, element: Element, header: Header) -> int:
    column = encoded.column
    values = decode(element, character_sets=header.character_sets, little_endian=header.little_endian)
    place = column.by_value.setdefault(values, len(column.values))
    if place == len(column.values):
        column.values.append(values)
    encoded.places[element] = place
    return place
