"""The encoded data set of a file -> the few values in it that somebody asked for.

Made for hostile files: the data set is walked to its end in constant memory, inflated piece by piece where it is
deflated; no item is kept, nothing recurses, and a value is read only where it is wanted. A general parser holds all of
it in memory, which a few bytes of zeros or of empty items can fill.
"""

from __future__ import annotations

import os
import re
import struct
import sys
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import BinaryIO, Final

from pydicom.datadict import dictionary_VR

LONGEST_VALUE_BYTES: Final = 16 * 1024
"""A value that is asked for and is longer makes a file unreadable. A UID has 64 characters, a name some hundred."""
LARGEST_INFLATED_BYTES: Final = 4 * 1024**3
MOST_ELEMENTS: Final = 5_000_000
"""Elements and items of one file. It bounds the time: a structure set with 100,000 contours has about a million."""
DEEPEST_SEQUENCE: Final = 64

_CHUNK_BYTES: Final = 16 * 1024
_IMPLICIT_LITTLE: Final = "1.2.840.10008.1.2"
_EXPLICIT_BIG: Final = "1.2.840.10008.1.2.2"
# Deflated Explicit VR Little Endian, and the JPIP syntaxes that deflate the data set, too (PS3.5 A.5, A.7, A.12).
_DEFLATED: Final = frozenset({"1.2.840.10008.1.2.1.99", "1.2.840.10008.1.2.4.95", "1.2.840.10008.1.2.4.205"})

_ITEM: Final = 0xFFFEE000
_ITEM_END: Final = 0xFFFEE00D
_SEQUENCE_END: Final = 0xFFFEE0DD
_UNDEFINED: Final = 0xFFFFFFFF
# PS3.5 7.1.2: these carry a 16-bit length; every other value representation, a future one too, a 32-bit one.
_SHORT_LENGTH: Final = frozenset(b"AE AS AT CS DA DS DT FL FD IS LO LT PN SH SL SS ST TM UI UL US".split())
# PS3.5 A.4: of undefined length, these hold fragments, which are no data sets.
_FRAGMENTED: Final = frozenset({b"OB", b"OD", b"OF", b"OL", b"OV", b"OW"})
_VR: Final = re.compile(rb"[A-Z]{2}")
_NO_END: Final = sys.maxsize


class UnreadableError(ValueError):
    """The file is no complete DICOM data set. The text says why, without a value of the file."""


@dataclass(frozen=True, slots=True)
class Value:
    """One encoded value. ``sequence`` is the tag of the innermost sequence that it stands in, 0 at the top."""

    sequence: int
    tag: int
    raw: bytes


def values(
    file: BinaryIO, *, offset: int, transfer_syntax_uid: str, top: frozenset[int], deep: frozenset[int] = frozenset()
) -> Iterator[Value]:
    """Walk the data set that begins at byte ``offset`` to its end; yield the values of the tags ``top``, which are
    looked for outside of sequences, and ``deep``, which are looked for at every depth.

    A tag that stands there twice is yielded twice. A transfer syntax that is not known is read as explicit VR little
    endian (PS3.5 A.4), unless the bytes say otherwise, as the gateway does. Raises ``UnreadableError`` where anything
    reaches beyond the end of what holds it, and where a bound of this module is passed.
    """
    file.seek(offset)
    source = _Inflated(file) if transfer_syntax_uid in _DEFLATED else _Stored(file, at=offset)
    big_endian = transfer_syntax_uid == _EXPLICIT_BIG
    explicit = _is_explicit(source, announced=transfer_syntax_uid != _IMPLICIT_LITTLE)
    return _Walk(source, explicit=explicit, big_endian=big_endian, top=top, deep=deep).values()


def _is_explicit(source: _Source, *, announced: bool) -> bool:
    """Tell how the first element is written: some senders announce the one, and write the other."""
    head = source.peek(8)
    vr = head[4:6]
    if announced:
        return _VR.fullmatch(vr) is not None
    return vr in _SHORT_LENGTH and int.from_bytes(head[4:8], "little") > source.end - source.at


class _Source:
    """Bytes that are read once, front to back, a chunk at a time. ``at`` and ``end`` count from the same point."""

    def __init__(self, *, at: int, end: int) -> None:
        self.at = at
        self.end = end
        self._chunk = b""
        self._place = 0

    def peek(self, count: int) -> bytes:
        """Return the next ``count`` bytes, fewer only where the end comes before."""
        while len(self._chunk) - self._place < count and (more := self._more()):
            self._chunk = self._chunk[self._place :] + more
            self._place = 0
        return self._chunk[self._place : self._place + count]

    def skip(self, count: int) -> None:
        """Go on by ``count`` bytes. Raises ``UnreadableError`` where there are fewer."""
        while count > len(self._chunk) - self._place:
            passed = len(self._chunk) - self._place
            count -= passed
            self.at += passed
            self._chunk, self._place = self._more(), 0
            if not self._chunk:
                raise UnreadableError("its data set is cut short")
        self._place += count
        self.at += count

    def _more(self) -> bytes:
        raise NotImplementedError


class _Stored(_Source):
    """The bytes of a file as they are."""

    def __init__(self, file: BinaryIO, *, at: int) -> None:
        super().__init__(at=at, end=os.fstat(file.fileno()).st_size)
        self._file = file

    def skip(self, count: int) -> None:
        if count > len(self._chunk) - self._place:
            self.at += count
            if self.at > self.end:
                raise UnreadableError("its data set is cut short")
            self._file.seek(self.at)
            self._chunk, self._place = b"", 0
        else:
            super().skip(count)

    def _more(self) -> bytes:
        return self._file.read(_CHUNK_BYTES)


class _Inflated(_Source):
    """The bytes that are deflated in a file, from where it is read (PS3.5 A.5)."""

    def __init__(self, file: BinaryIO) -> None:
        super().__init__(at=0, end=_NO_END)
        self._file = file
        self._inflater = zlib.decompressobj(-zlib.MAX_WBITS)
        self._inflated_bytes = 0

    def _more(self) -> bytes:
        while not self._inflater.eof:
            deflated = self._inflater.unconsumed_tail or self._file.read(_CHUNK_BYTES)
            try:
                plain = self._inflater.decompress(deflated, _CHUNK_BYTES)
            except zlib.error:
                raise UnreadableError("its data set cannot be inflated") from None
            if plain:
                self._inflated_bytes += len(plain)
                if self._inflated_bytes > LARGEST_INFLATED_BYTES:
                    raise UnreadableError(f"its data set is inflated to more than {LARGEST_INFLATED_BYTES} bytes")
                return plain
            if not deflated and not self._inflater.eof:
                raise UnreadableError("its data set is cut short")
        return b""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Part:
    """A data set, or the items of a sequence, that the walk is inside of."""

    sequence: int
    explicit: bool
    end: int
    """Where it ends; ``_NO_END`` where a delimiter tells."""
    limit: int
    """Where the innermost part around it ends that has an end."""
    holds_items: bool = False
    is_fragmented: bool = False


class _Walk:
    def __init__(
        self, source: _Source, *, explicit: bool, big_endian: bool, top: frozenset[int], deep: frozenset[int]
    ) -> None:
        self._source = source
        self._top = top | deep
        self._deep = deep
        order = ">" if big_endian else "<"
        self._tag_at = struct.Struct(order + "HH").unpack_from
        self._short_at = struct.Struct(order + "H").unpack_from
        self._long_at = struct.Struct(order + "L").unpack_from
        self._here = _Part(sequence=0, explicit=explicit, end=source.end, limit=source.end)
        self._around: list[_Part] = []

    def values(self) -> Iterator[Value]:
        for _ in range(MOST_ELEMENTS):
            while self._around and self._source.at == self._here.end:
                self._here = self._around.pop()
            head = self._source.peek(12)
            if len(head) < 8:
                # A few zero bytes of padding are no element.
                if self._around or any(head):
                    raise UnreadableError("its data set is cut short")
                return
            if self._here.holds_items:
                self._item(head)
            else:
                yield from self._element(head)
        raise UnreadableError(f"it has more than {MOST_ELEMENTS} elements")

    def _item(self, head: bytes) -> None:
        tag, length = self._tag(head), self._long_at(head, 4)[0]
        here = self._here
        if tag == _SEQUENCE_END:
            self._close()
            return
        if tag != _ITEM:
            raise UnreadableError("something stands in a sequence that is no item")
        end = _NO_END if length == _UNDEFINED else self._end_of(self._source.at + 8, length)
        if end != _NO_END and (here.is_fragmented or not self._deep):
            self._source.skip(8 + length)
            return
        self._source.skip(8)
        self._open(
            _Part(sequence=here.sequence, explicit=here.explicit, end=end, limit=min(end, here.limit)),
        )

    def _element(self, head: bytes) -> Iterator[Value]:
        tag = self._tag(head)
        if tag == _ITEM_END and self._around:
            self._close()
            return
        vr, length, head_bytes = self._vr_and_length(tag, head)
        start = self._source.at + head_bytes
        if length == _UNDEFINED:
            self._source.skip(head_bytes)
            self._open_sequence(tag, vr, end=_NO_END)
            return
        end = self._end_of(start, length)
        if tag in (self._deep if self._around else self._top):
            yield Value(self._here.sequence, tag, self._read(head_bytes, length))
        elif length and self._deep and (vr == b"SQ" or (vr in (b"", b"UN") and _is_sequence(tag))):
            self._source.skip(head_bytes)
            self._open_sequence(tag, vr, end=end)
        else:
            self._source.skip(head_bytes + length)

    def _tag(self, head: bytes) -> int:
        group, number = self._tag_at(head)
        return int(group << 16 | number)

    def _vr_and_length(self, tag: int, head: bytes) -> tuple[bytes, int, int]:
        """Return the value representation, empty where none is written, the length, and the bytes of all that."""
        vr = head[4:6]
        # Some senders slip elements without a VR into an explicit data set; delimiters never have one (PS3.5 7.5).
        if not self._here.explicit or tag >> 16 == 0xFFFE or _VR.fullmatch(vr) is None:
            return b"", self._long_at(head, 4)[0], 8
        if vr in _SHORT_LENGTH:
            return vr, self._short_at(head, 6)[0], 8
        if len(head) < 12:
            raise UnreadableError("its data set is cut short")
        return vr, self._long_at(head, 8)[0], 12

    def _end_of(self, start: int, length: int) -> int:
        end = start + length
        if end > self._here.limit:
            if self._here.limit == self._source.end:
                raise UnreadableError("its data set is cut short")
            raise UnreadableError("an element reaches beyond the item or sequence that holds it")
        return end

    def _read(self, head_bytes: int, length: int) -> bytes:
        if length > LONGEST_VALUE_BYTES:
            raise UnreadableError(f"a value in it is longer than {LONGEST_VALUE_BYTES} bytes")
        self._source.skip(head_bytes)
        raw = self._source.peek(length)
        self._source.skip(length)
        return raw

    def _open_sequence(self, tag: int, vr: bytes, *, end: int) -> None:
        self._open(
            _Part(
                sequence=tag,
                # PS3.5 6.2.2, note 2: a sequence of unknown VR is encoded as implicit VR.
                explicit=self._here.explicit and vr != b"UN",
                end=end,
                limit=min(end, self._here.limit),
                holds_items=True,
                is_fragmented=vr in _FRAGMENTED,
            )
        )

    def _open(self, part: _Part) -> None:
        if len(self._around) >= 2 * DEEPEST_SEQUENCE:
            raise UnreadableError(f"its sequences are nested deeper than {DEEPEST_SEQUENCE}")
        self._around.append(self._here)
        self._here = part

    def _close(self) -> None:
        """Leave a part at its delimiter. One that has a length needs none, and what follows in it means nothing."""
        self._source.skip(8 if self._here.end == _NO_END else self._here.end - self._source.at)
        self._here = self._around.pop()


@lru_cache(maxsize=16384)
def _is_sequence(tag: int) -> bool:
    try:
        return dictionary_VR(tag) == "SQ"
    except KeyError:
        return False
