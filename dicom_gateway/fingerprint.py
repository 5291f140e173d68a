"""Headers of instances -> the fingerprint of a study, column by column."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final

from dicom_gateway.header import Element, Header, decode, is_private
from flows_engine.handoff.study_store import Fingerprint, TagColumn

MOST_TAGS: Final = 2000
"""How many distinct tags of a study are kept. Real studies have some hundred."""


@dataclass(slots=True)
class _Column:
    index: list[int] = field(default_factory=list)
    values: list[tuple[str, ...]] = field(default_factory=list)
    by_value: dict[tuple[str, ...], int] = field(default_factory=dict)
    by_encoding: dict[tuple[Element, bytes, bool], int] = field(default_factory=dict)


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

    @property
    def instance_count(self) -> int:
        """How many headers were added."""
        return self._count

    def add(self, header: Header) -> None:
        """Add the header of the next instance. Never raises for what stands in it."""
        for tag, element in header.elements.items():
            column = self._columns.get(tag) or self._new_column(tag)
            if column is None:
                self._left_out += 1
                continue
            if len(column.index) < self._count:
                column.index.extend([-1] * (self._count - len(column.index)))
            column.index.append(_place(column, element, header))
        self._left_out += header.left_out_count
        self._count += 1

    def _new_column(self, tag: int) -> _Column | None:
        private = is_private(tag)
        if len(self._columns) >= MOST_TAGS:
            if private or not self._private:
                return None
            given_up = self._columns.pop(self._private.pop())
            self._left_out += len(given_up.index) - given_up.index.count(-1)
        if private:
            self._private.append(tag)
        column = self._columns[tag] = _Column()
        return column

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


def _place(column: _Column, element: Element, header: Header) -> int:
    key = (element, header.character_sets, header.little_endian)
    place = column.by_encoding.get(key)
    if place is None:
        values = decode(element, character_sets=header.character_sets, little_endian=header.little_endian)
        place = column.by_value.setdefault(values, len(column.values))
        if place == len(column.values):
            column.values.append(values)
        column.by_encoding[key] = place
    return place
