"""The encoded data set of one instance -> the values in it that can be searched. Pure, and made for hostile bytes.

The whole data set is walked, pixel data included, since an object that was cut short shows only at its end. No value is
copied that is not kept, and nothing is decoded until somebody asks for it.
"""

from __future__ import annotations

import mmap
import re
import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Final

from pydicom.charset import decode_bytes, default_encoding, python_encoding
from pydicom.datadict import dictionary_VR
from pydicom.uid import DeflatedExplicitVRLittleEndian, ExplicitVRBigEndian, ImplicitVRLittleEndian
from pydicom.valuerep import PN_DELIMS, TEXT_VR_DELIMS

LONGEST_VALUE_BYTES: Final = 16 * 1024
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

SPECIFIC_CHARACTER_SET: Final = 0x00080005
TRANSFER_SYNTAX_UID: Final = 0x00020010
_PIXEL_REPRESENTATION: Final = 0x00280103
_ITEM: Final = 0xFFFEE000
_ITEM_END: Final = 0xFFFEE00D
_SEQUENCE_END: Final = 0xFFFEE0DD
_UNDEFINED: Final = 0xFFFFFFFF

# PS3.5 7.1.2: these carry a 16-bit length; every other value representation, a future one too, a 32-bit one.
_SHORT_LENGTH: Final = frozenset(
    b"AE AS AT CS DA DS DT FL FD IS LO LT PN SH SL SS ST TM UI UL US".split(),
)
_TEXT: Final = frozenset({"LO", "LT", "PN", "SH", "ST", "UC", "UT"})
_PLAIN_TEXT: Final = frozenset({"AE", "AS", "CS", "DA", "DS", "DT", "IS", "TM", "UI", "UR"})
_ONE_VALUE: Final = frozenset({"LT", "ST", "UT", "UR"})
_NUMBER_FORMAT: Final = {"US": "H", "SS": "h", "UL": "L", "SL": "l", "UV": "Q", "SV": "q", "FL": "f", "FD": "d"}
_SEARCHABLE: Final = _TEXT | _PLAIN_TEXT | frozenset(_NUMBER_FORMAT) | {"AT"}
_BACKSLASH: Final = 0x5C
_VR: Final = re.compile(rb"[A-Z]{2}\Z")
_PRINTABLE: Final = re.compile(rb"[ -~]+\0?\Z")


Content = bytes | mmap.mmap
"""What is read may be in memory, or a file that is mapped there, of which only what is looked at is read."""


class UnreadableError(ValueError):
    """The bytes are not a complete DICOM data set. The message says where reading stopped, and quotes no value."""


@dataclass(frozen=True, slots=True)
class Element:
    """One searchable element of the top level, as it was encoded."""

    vr: str
    raw: bytes


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
        element = self.elements.get(SPECIFIC_CHARACTER_SET)
        return element.raw if element is not None else b""

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


def read_header(data_set: bytes, *, transfer_syntax_uid: str) -> Header:
    """Return what can be searched in an encoded data set (without file meta information).

    The transfer syntax itself is added as (0002,0010). A transfer syntax that is not known is read as explicit VR
    little endian (PS3.5 A.4), unless the bytes say otherwise. Raises ``UnreadableError`` where an element, an item or a
    fragment reaches beyond the end, and where there is nothing at all.
    """
    return _read_from(data_set, 0, transfer_syntax_uid=transfer_syntax_uid)


def _read_from(data: Content, start: int, *, transfer_syntax_uid: str) -> Header:
    """Return what can be searched in the data set that begins at ``start``, of which no copy is made."""
    if transfer_syntax_uid == DeflatedExplicitVRLittleEndian:
        data, start = _inflated(data[start:]), 0
    if start >= len(data):
        raise UnreadableError("the data set is empty")
    little_endian = transfer_syntax_uid != ExplicitVRBigEndian
    walk = _Walk(data, start=start, little_endian=little_endian)
    explicit = _looks_explicit(data[start : start + 8], size_bytes=len(data) - start) or (
        transfer_syntax_uid != ImplicitVRLittleEndian and _VR.match(data[start + 4 : start + 6]) is not None
    )
    elements = {TRANSFER_SYNTAX_UID: Element("UI", transfer_syntax_uid.encode("ascii", "replace"))}
    left_out_count = 0
    try:
        for tag, vr, raw in walk.top_level(explicit=explicit):
            if len(elements) >= MOST_ELEMENTS:
                left_out_count += 1
            elif raw or not is_private(tag):
                elements.setdefault(tag, Element(vr, raw))
    except struct.error:
        raise UnreadableError("the data set ends inside an element") from None
    pixel_representation = elements.get(_PIXEL_REPRESENTATION)
    signed = pixel_representation is not None and pixel_representation.raw[:1] == b"\1"
    for tag, element in elements.items():
        if element.vr == "US or SS":
            elements[tag] = Element("SS" if signed else "US", element.raw)
    return Header(elements=elements, little_endian=little_endian, left_out_count=left_out_count)


def read_file_header(file: Content) -> Header:
    """Return what can be searched in a file that the gateway wrote (PS3.10 7.1). Raises ``UnreadableError``."""
    if file[128:132] != b"DICM" or file[132:140] != b"\x02\0\0\0UL\x04\0":
        raise UnreadableError("the file does not begin as a DICOM file")
    (meta_length,) = struct.unpack_from("<L", file[:144].ljust(144, b"\0"), 140)
    meta = file[132 : 144 + meta_length]
    try:
        elements = {tag: raw for tag, _, raw in _Walk(meta, start=0, little_endian=True).top_level(explicit=True)}
    except struct.error:
        raise UnreadableError("the file ends inside its meta information") from None
    transfer_syntax_uid = elements.get(TRANSFER_SYNTAX_UID, b"").decode("ascii", "replace").strip(" \0")
    return _read_from(file, 144 + meta_length, transfer_syntax_uid=transfer_syntax_uid)


def decode(element: Element, *, character_sets: bytes, little_endian: bool) -> tuple[str, ...]:
    """Return an element's values as text. Never raises: what cannot be decoded becomes replacement characters.

    Numbers given as text (DS, IS) stay as they were written; binary ones become decimal text; AT becomes ``GGGGEEEE``.
    """
    raw, vr = element.raw[:LONGEST_VALUE_BYTES], element.vr
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


@lru_cache(maxsize=16384)
def _dictionary_vr(tag: int) -> str:
    try:
        return dictionary_VR(tag)
    except KeyError:
        return "UL" if tag & 0xFFFF == 0 else "LO" if _is_private_creator(tag) else "UN"


def _guessed_vr(tag: int, raw: bytes) -> str:
    """Return what an element of unknown VR is read as: what the dictionary says, else text where it looks like it."""
    known = _dictionary_vr(tag)
    if known in _SEARCHABLE or known == "US or SS":
        return known
    return "LO" if _PRINTABLE.match(raw) else "UN"


def is_private(tag: int) -> bool:
    """Tell whether a tag is one that its manufacturer defines (PS3.5 7.8)."""
    return bool(tag >> 16 & 1)


def _is_private_creator(tag: int) -> bool:
    return is_private(tag) and 0x10 <= tag & 0xFFFF <= 0xFF


def _inflated(deflated: bytes) -> bytes:
    largest = min(LARGEST_INFLATED_BYTES, max(HARMLESS_INFLATED_BYTES, GREATEST_INFLATION * len(deflated)))
    inflater = zlib.decompressobj(-zlib.MAX_WBITS)
    try:
        plain = inflater.decompress(deflated, largest)
    except zlib.error:
        raise UnreadableError("the deflated data set cannot be inflated") from None
    if not inflater.eof:
        raise UnreadableError("the deflated data set has no end, or grows too large")
    return plain


def _looks_explicit(beginning: bytes, *, size_bytes: int) -> bool:
    """Tell whether a data set that was announced as implicit VR is explicit all the same, as some senders write it."""
    if beginning[4:6] not in _SHORT_LENGTH:
        return False
    (length_if_implicit,) = struct.unpack_from("<L", beginning.ljust(8, b"\0"), 4)
    return bool(length_if_implicit > size_bytes)


class _Walk:
    """Steps through an encoded data set, and insists that everything in it lies within it."""

    def __init__(self, data: Content, *, start: int, little_endian: bool) -> None:
        self._data = data
        self._start = start
        self._end = len(data)
        order = "<" if little_endian else ">"
        self._tag_at = struct.Struct(order + "HH").unpack_from
        self._short_at = struct.Struct(order + "H").unpack_from
        self._long_at = struct.Struct(order + "L").unpack_from

    def top_level(self, *, explicit: bool) -> Iterator[tuple[int, str, bytes]]:
        """Yield tag, value representation and encoded value of the searchable elements."""
        at = self._start
        while at < self._end:
            if at > self._start and self._end - at < 8 and not any(self._data[at:]):
                return  # a few zero bytes of padding are no element
            tag, vr, length, start = self._head(at, explicit=explicit)
            at = self._after_value(vr, length, start, explicit=explicit, depth=0)
            if vr == "UN" and length <= LONGEST_UNKNOWN_BYTES:
                vr = _guessed_vr(tag, self._data[start:at])
            if vr in _SEARCHABLE or vr == "US or SS":
                yield tag, vr, self._data[start : min(at, start + LONGEST_VALUE_BYTES)]

    def _head(self, at: int, *, explicit: bool) -> tuple[int, str, int, int]:
        """Return tag, value representation, length, and where the value starts."""
        group, number = self._tag_at(self._data, at)
        tag = group << 16 | number
        vr = self._data[at + 4 : at + 6]
        # Some senders slip elements without a VR into an explicit data set; delimiters never have one (PS3.5 7.5).
        if not explicit or group == 0xFFFE or _VR.match(vr) is None:
            return tag, _dictionary_vr(tag), self._long_at(self._data, at + 4)[0], at + 8
        if vr in _SHORT_LENGTH:
            return tag, vr.decode("ascii"), self._short_at(self._data, at + 6)[0], at + 8
        return tag, vr.decode("ascii"), self._long_at(self._data, at + 8)[0], at + 12

    def _after_value(self, vr: str, length: int, start: int, *, explicit: bool, depth: int) -> int:
        if length != _UNDEFINED:
            if start + length > self._end:
                beyond = start + length - self._end
                raise UnreadableError(
                    f"the element at byte {start - self._start} reaches {beyond} bytes beyond the end"
                )
            return start + length
        # PS3.5 6.2.2, note 2: an unknown VR of undefined length is a sequence encoded as implicit VR.
        return self._after_items(start, explicit=explicit and vr != "UN", depth=depth + 1)

    def _after_items(self, at: int, *, explicit: bool, depth: int) -> int:
        if depth > DEEPEST_SEQUENCE:
            raise UnreadableError(f"sequences are nested deeper than {DEEPEST_SEQUENCE}")
        while True:
            tag, _, length, at = self._head(at, explicit=False)
            if tag == _SEQUENCE_END:
                return at
            if tag != _ITEM:
                raise UnreadableError(f"there is no item where one should be, at byte {at - 8 - self._start}")
            if length != _UNDEFINED:
                at += length
                if at > self._end:
                    raise UnreadableError(f"an item reaches {at - self._end} bytes beyond the end")
                continue
            at = self._after_open_item(at, explicit=explicit, depth=depth)

    def _after_open_item(self, at: int, *, explicit: bool, depth: int) -> int:
        while True:
            tag, vr, length, start = self._head(at, explicit=explicit)
            if tag == _ITEM_END:
                return start
            at = self._after_value(vr, length, start, explicit=explicit, depth=depth)
