"""The encoded data set of one instance -> the values in it that can be searched. Pure, and made for hostile bytes.

The whole data set is walked, pixel data included, since an object that was cut short shows only at its end. No value is
copied that is not kept, and nothing is decoded until somebody asks for it.

What nearly every scanner sends, explicit VR little endian, is read by a tight loop (``_take_plain``). It leaves what it
does not know at first sight to the careful walk (``Walk``), which takes that one element, and goes on behind it.
"""

from __future__ import annotations

import re
import struct
import zlib
from collections.abc import Container, Iterator
from dataclasses import dataclass
from functools import cached_property, lru_cache
from mmap import mmap
from typing import Final

from pydicom.datadict import dictionary_VR
from pydicom.uid import DeflatedExplicitVRLittleEndian, ExplicitVRBigEndian, ImplicitVRLittleEndian

from flows_engine.handoff.decoding import LONGEST_VALUE_BYTES, SEARCHABLE, Element, decode

LONGEST_UNKNOWN_BYTES: Final = 1024
"""An element of unknown VR that is longer is no text to search in."""
LARGEST_INFLATED_BYTES: Final = 1024**3
"""A deflated data set that grows beyond this is refused as an attack."""
GREATEST_INFLATION: Final = 200
HARMLESS_INFLATED_BYTES: Final = 256 * 1024**2
"""Up to here a data set may grow more than ``GREATEST_INFLATION`` times: an empty segmentation does."""
MOST_ELEMENTS: Final = 20_000
"""How many elements of one instance are kept. Real ones have some hundred."""
DEEPEST_SEQUENCE: Final = 64
_LONGEST_META_BYTES: Final = 1024**2

SPECIFIC_CHARACTER_SET: Final = 0x00080005
TRANSFER_SYNTAX_UID: Final = 0x00020010
_PIXEL_REPRESENTATION: Final = 0x00280103
ITEM: Final = 0xFFFEE000
ITEM_END: Final = 0xFFFEE00D
SEQUENCE_END: Final = 0xFFFEE0DD
UNDEFINED: Final = 0xFFFFFFFF
_UNDETERMINED: Final = "US or SS"

# PS3.5 7.1.2: these carry a 16-bit length; every other value representation, a future one too, a 32-bit one.
_SHORT_LENGTH: Final = frozenset(
    b"AE AS AT CS DA DS DT FL FD IS LO LT PN SH SL SS ST TM UI UL US".split(),
)
_VR: Final = re.compile(rb"[A-Z]{2}\Z")
# Values that are passed over. A sequence is, too: what it holds is not of the top level.
_LONG_AND_PASSED_OVER: Final = frozenset(b"OB OD OF OL OV OW SQ".split())
BEGINNING_BYTES: Final = 64 * 1024
"""So much of what is not in memory is copied at once. The elements before the pixels hardly ever take more."""
_MOST_HEADS: Final = 16_384
_PRINTABLE: Final = re.compile(rb"[ -~]+\0?\Z")


Buffer = bytes | mmap | memoryview


class UnreadableError(ValueError):
    """The bytes are not a complete DICOM data set. The message says where reading stopped, and quotes no value."""


@dataclass(frozen=True, kw_only=True)
class Header:
    """The searchable elements of one instance, by tag (``0xGGGGEEEE``)."""

    elements: dict[int, Element]
    little_endian: bool
    left_out_count: int = 0
    """How many elements were passed over because there are more than ``MOST_ELEMENTS``."""

    @cached_property
    def character_sets(self) -> bytes:
        """Return Specific Character Set as encoded; two headers with the same one decode the same bytes alike."""
        return self.raw(SPECIFIC_CHARACTER_SET)

    def raw(self, tag: int) -> bytes:
        """Return the value of ``tag`` as encoded; nothing where the instance lacks it."""
        element = self.elements.get(tag)
        return element[1] if element is not None else b""

    def values(self, tag: int) -> tuple[str, ...] | None:
        """Return the values of ``tag`` as text, ``("",)`` where it is empty, None where the instance lacks it."""
        element = self.elements.get(tag)
        if element is None:
            return None
        return decode(element, character_sets=self.character_sets, little_endian=self.little_endian)

    def text(self, tag: int) -> str:
        """Return the first value of ``tag``, or an empty string."""
        values = self.values(tag)
        return values[0] if values else ""


def read_header(data_set: Buffer, *, transfer_syntax_uid: str) -> Header:
    """Return what can be searched in an encoded data set (without file meta information).

    Nothing of ``data_set`` is kept, and of what is not in memory yet, only what is looked at is read. The transfer
    syntax itself is added as (0002,0010). A transfer syntax that is not known is read as explicit VR little endian
    (PS3.5 A.4), unless the bytes say otherwise. Raises ``UnreadableError`` where an element, an item or a fragment
    reaches beyond the end, and where there is nothing at all.
    """
    if transfer_syntax_uid == DeflatedExplicitVRLittleEndian:
        data_set = inflated(data_set)
    if not len(data_set):
        raise UnreadableError("the data set is empty")
    little_endian = transfer_syntax_uid != ExplicitVRBigEndian
    explicit = is_explicit(data_set, transfer_syntax_uid=transfer_syntax_uid)
    reading = _Reading(data_set, little_endian=little_endian, explicit=explicit)
    reading.elements[TRANSFER_SYNTAX_UID] = ("UI", transfer_syntax_uid.encode("ascii", "replace"))
    try:
        reading.read_all()
    except struct.error:
        raise UnreadableError("the data set ends inside an element") from None
    return Header(elements=reading.elements, little_endian=little_endian, left_out_count=reading.left_out_count)


def read_file_header(file: Buffer) -> Header:
    """Return what can be searched in a file that the gateway wrote (PS3.10 7.1). Raises ``UnreadableError``.

    ``file`` may be mapped into memory: it is not copied.
    """
    transfer_syntax_uid, offset = read_meta(file)
    with memoryview(file) as whole, whole[offset:] as data_set:
        return read_header(data_set, transfer_syntax_uid=transfer_syntax_uid)


def read_meta(file: Buffer) -> tuple[str, int]:
    """Return the transfer syntax of a file's data set, and where that begins. Raises ``UnreadableError``."""
    if file[128:132] != b"DICM" or file[132:140] != b"\x02\0\0\0UL\x04\0":
        raise UnreadableError("the file does not begin as a DICOM file")
    (meta_length,) = struct.unpack("<L", bytes(file[140:144]).ljust(4, b"\0"))
    if meta_length > _LONGEST_META_BYTES:
        raise UnreadableError("the file's meta information is longer than that of any instance")
    meta = Walk(bytes(file[132 : 144 + meta_length]), little_endian=True)
    try:
        elements = {tag: raw for tag, _, raw in meta.top_level(explicit=True)}
    except struct.error:
        raise UnreadableError("the file ends inside its meta information") from None
    transfer_syntax_uid = elements.get(TRANSFER_SYNTAX_UID, b"").decode("ascii", "replace").strip(" \0")
    return transfer_syntax_uid, 144 + meta_length


class _Reading:
    """Collects the searchable elements of one data set."""

    def __init__(self, data: Buffer, *, little_endian: bool, explicit: bool) -> None:
        self._data = data
        self._explicit = explicit
        self._is_plain = explicit and little_endian
        self._walk = Walk(data, little_endian=little_endian)
        self.elements: dict[int, Element] = {}
        self.left_out_count = 0

    def read_all(self) -> None:
        """Take every element. Raises ``UnreadableError``, and ``struct.error`` where a head is cut short."""
        beginning = b""
        if self._is_plain:
            beginning = self._data if isinstance(self._data, bytes) else bytes(self._data[:BEGINNING_BYTES])
        undetermined: list[int] = []
        at = 0
        while True:
            if at < len(beginning):
                at = _take_plain(beginning, at, end=len(self._data), into=self.elements)
            if self._walk.is_over(at):
                break
            at, tag, vr, raw = self._walk.element(at, explicit=self._explicit)
            if not vr:
                continue
            if len(self.elements) >= MOST_ELEMENTS:
                self.left_out_count += 1
            elif (raw or not is_private(tag)) and tag not in self.elements:
                self.elements[tag] = (vr, raw)
                if vr == _UNDETERMINED:
                    undetermined.append(tag)
        _, pixel_representation = self.elements.get(_PIXEL_REPRESENTATION, ("", b""))
        vr = "SS" if pixel_representation[:1] == b"\1" else "US"
        for tag in undetermined:
            self.elements[tag] = (vr, self.elements[tag][1])


_plain_head_at: Final = struct.Struct("<6sH").unpack_from
_tag_of: Final = struct.Struct("<HH").unpack_from
_long_length_at: Final = struct.Struct("<L").unpack_from
_known_heads: Final[dict[bytes, tuple[int, str]]] = {}
"""What tag and VR at the head of an element stand for; no VR for what has a long length, and is passed over."""


def _take_plain(data: bytes, at: int, *, end: int, into: dict[int, Element]) -> int:
    """Take elements of explicit VR little endian as long as each is known at first sight. Return where that ends.

    ``end`` is where the data set ends, of which ``data`` may be the beginning only.
    """
    # Names of this function are found faster than those of the module, a hundred times an instance.
    known_heads, head_at, longest = _known_heads, _plain_head_at, LONGEST_VALUE_BYTES
    size = len(data)
    last = size - 12
    for _ in range(MOST_ELEMENTS - len(into)):
        if at > last:
            break
        head, length = head_at(data, at)
        known = known_heads.get(head)
        if known is None:
            known = _learnt(head)
            if known is None:
                break
        tag, vr = known
        if vr:
            start = at + 8
            after = start + length
            if after > size or length > longest:
                break
            if length or not tag & 0x10000:  # an empty element of a manufacturer says nothing
                into.setdefault(tag, (vr, data[start:after]))
        else:
            (length,) = _long_length_at(data, at + 8)
            after = at + 12 + length
            if length == UNDEFINED or after > end:
                break
        at = after
    return at


def skip_plain(data: bytes, at: int, *, end: int, stop_at: Container[int]) -> int:
    """Step over elements of explicit VR little endian as long as each is known at first sight. Return where that ends.

    It ends at a tag of ``stop_at`` and at a private one, too. ``data`` may be only the beginning of what ends at
    ``end``.
    """
    last = len(data) - 12
    while at <= last:
        head, length = _plain_head_at(data, at)
        known = _known_heads.get(head) or _learnt(head)
        if known is None or known[0] in stop_at or known[0] & 0x10000:
            break
        after = at + 8 + length
        if not known[1]:
            (length,) = _long_length_at(data, at + 8)
            after = at + 12 + length
            if length == UNDEFINED:
                break
        if after > end:
            break
        at = after
    return at


def _learnt(head: bytes) -> tuple[int, str] | None:
    """Return what a head stands for, if that is plain; keep it, since the next instance has it as well."""
    group, number = _tag_of(head)
    vr = head[4:]
    if group == 0xFFFE or not (vr in _SHORT_LENGTH or vr in _LONG_AND_PASSED_OVER):
        return None
    if len(_known_heads) >= _MOST_HEADS:
        _known_heads.clear()  # a stranger may send any number of tags
    known = _known_heads[head] = group << 16 | number, vr.decode("ascii") if vr in _SHORT_LENGTH else ""
    return known


@lru_cache(maxsize=16384)
def _dictionary_vr(tag: int) -> str:
    try:
        return dictionary_VR(tag)
    except KeyError:
        return "UL" if tag & 0xFFFF == 0 else "LO" if _is_private_creator(tag) else "UN"


def guessed_vr(tag: int, raw: bytes) -> str:
    """Return what an element of unknown VR is read as: what the dictionary says, else text where it looks like it."""
    known = _dictionary_vr(tag)
    if known in SEARCHABLE or known == _UNDETERMINED:
        return known
    return "LO" if _PRINTABLE.match(raw) else "UN"


def is_private(tag: int) -> bool:
    """Tell whether a tag is one that its manufacturer defines (PS3.5 7.8)."""
    return bool(tag >> 16 & 1)


def _is_private_creator(tag: int) -> bool:
    return is_private(tag) and 0x10 <= tag & 0xFFFF <= 0xFF


def inflated(deflated: Buffer) -> bytes:
    """Return a deflated data set (PS3.5 A.5) as it was before. Raises ``UnreadableError``, for an attack as well."""
    largest = min(LARGEST_INFLATED_BYTES, max(HARMLESS_INFLATED_BYTES, GREATEST_INFLATION * len(deflated)))
    inflater = zlib.decompressobj(-zlib.MAX_WBITS)
    try:
        plain = inflater.decompress(deflated, largest)
    except zlib.error:
        raise UnreadableError("the deflated data set cannot be inflated") from None
    if not inflater.eof:
        raise UnreadableError("the deflated data set has no end, or grows too large")
    return plain


def is_explicit(data_set: Buffer, *, transfer_syntax_uid: str) -> bool:
    """Tell whether the elements of a data set say of which VR they are, whatever was announced."""
    return _looks_explicit(data_set) or (
        transfer_syntax_uid != ImplicitVRLittleEndian and _VR.match(bytes(data_set[4:6])) is not None
    )


def _looks_explicit(data_set: Buffer) -> bool:
    """Tell whether a data set that was announced as implicit VR is explicit all the same, as some senders write it."""
    head = bytes(data_set[:8]).ljust(8, b"\0")
    if head[4:6] not in _SHORT_LENGTH:
        return False
    (length_if_implicit,) = struct.unpack_from("<L", head, 4)
    return bool(length_if_implicit > len(data_set))


class Walk:
    """Steps through an encoded data set, and insists that everything in it lies within it."""

    def __init__(self, data: Buffer, *, little_endian: bool) -> None:
        self._data = data
        self._end = len(data)
        order = "<" if little_endian else ">"
        self._tag_at = struct.Struct(order + "HH").unpack_from
        self._short_at = struct.Struct(order + "H").unpack_from
        self._long_at = struct.Struct(order + "L").unpack_from

    def top_level(self, *, explicit: bool) -> Iterator[tuple[int, str, bytes]]:
        """Yield tag, value representation and encoded value of the searchable elements."""
        at = 0
        while not self.is_over(at):
            at, tag, vr, raw = self.element(at, explicit=explicit)
            if vr:
                yield tag, vr, raw

    def is_over(self, at: int) -> bool:
        """Tell whether no element follows at ``at``: a few zero bytes of padding are none."""
        return at >= self._end or (at > 0 and self._end - at < 8 and not any(self._data[at : self._end]))

    def element(self, at: int, *, explicit: bool) -> tuple[int, int, str, bytes]:
        """Return where the element at ``at`` ends, its tag, and, if it can be searched, its VR and encoded value."""
        tag, vr, length, start = self.head(at, explicit=explicit)
        after = self.after_value(vr, length, start, explicit=explicit, depth=0)
        if vr == "UN" and length <= LONGEST_UNKNOWN_BYTES:
            vr = guessed_vr(tag, bytes(self._data[start:after]))
        if vr in SEARCHABLE or vr == _UNDETERMINED:
            return after, tag, vr, bytes(self._data[start : min(after, start + LONGEST_VALUE_BYTES)])
        return after, tag, "", b""

    def head(self, at: int, *, explicit: bool) -> tuple[int, str, int, int]:
        """Return tag, value representation, length, and where the value starts."""
        group, number = self._tag_at(self._data, at)
        tag = group << 16 | number
        vr = bytes(self._data[at + 4 : at + 6])
        # Some senders slip elements without a VR into an explicit data set; delimiters never have one (PS3.5 7.5).
        if not explicit or group == 0xFFFE or _VR.match(vr) is None:
            return tag, _dictionary_vr(tag), self._long_at(self._data, at + 4)[0], at + 8
        if vr in _SHORT_LENGTH:
            return tag, vr.decode("ascii"), self._short_at(self._data, at + 6)[0], at + 8
        return tag, vr.decode("ascii"), self._long_at(self._data, at + 8)[0], at + 12

    def after_value(self, vr: str, length: int, start: int, *, explicit: bool, depth: int) -> int:
        """Return where a value ends, whatever is nested in it. Raises ``UnreadableError``."""
        if length != UNDEFINED:
            if start + length > self._end:
                beyond = start + length - self._end
                raise UnreadableError(f"the element at byte {start} reaches {beyond} bytes beyond the end")
            return start + length
        # PS3.5 6.2.2, note 2: an unknown VR of undefined length is a sequence encoded as implicit VR.
        return self._after_items(start, explicit=explicit and vr != "UN", depth=depth + 1)

    def _after_items(self, at: int, *, explicit: bool, depth: int) -> int:
        if depth > DEEPEST_SEQUENCE:
            raise UnreadableError(f"sequences are nested deeper than {DEEPEST_SEQUENCE}")
        while True:
            tag, _, length, at = self.head(at, explicit=False)
            if tag == SEQUENCE_END:
                return at
            if tag != ITEM:
                raise UnreadableError(f"there is no item where one should be, at byte {at - 8}")
            if length != UNDEFINED:
                at += length
                if at > self._end:
                    raise UnreadableError(f"an item reaches {at - self._end} bytes beyond the end")
                continue
            at = self._after_open_item(at, explicit=explicit, depth=depth)

    def _after_open_item(self, at: int, *, explicit: bool, depth: int) -> int:
        while True:
            tag, vr, length, start = self.head(at, explicit=explicit)
            if tag == ITEM_END:
                return start
            at = self.after_value(vr, length, start, explicit=explicit, depth=depth)
