"""The first bytes of a DICOM file -> what a C-STORE request has to know of it. The data set itself is never decoded."""

from __future__ import annotations

import os
import re
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Final

from flows_engine.output_files import open_regular

_HEAD_BYTES: Final = 16 * 1024
_LARGEST_META_BYTES: Final = 16 * 1024 * 1024
_BLOCK_BYTES: Final = 512
_LARGEST_HOLE_BYTES: Final = 2**30
_META_START: Final = 132
_LONG_VRS: Final = frozenset(
    {b"OB", b"OD", b"OF", b"OL", b"OV", b"OW", b"SQ", b"SV", b"UC", b"UN", b"UR", b"UT", b"UV"}
)
_UNDEFINED_LENGTH: Final = 0xFFFFFFFF
# PS3.5 9.1 allows no component to begin with 0, but devices make such UIDs, and what was received can be sent.
_UID: Final = re.compile(r"[0-9]+(\.[0-9]+)*\Z")

_IMPLICIT_LITTLE: Final = "1.2.840.10008.1.2"
_EXPLICIT_BIG: Final = "1.2.840.10008.1.2.2"
_DEFLATED: Final = frozenset({"1.2.840.10008.1.2.1.99", "1.2.840.10008.1.2.8.1"})

_META_GROUP: Final = 0x0002
_META_GROUP_LENGTH: Final = 0x00020000
_MEDIA_SOP_CLASS: Final = 0x00020002
_MEDIA_SOP_INSTANCE: Final = 0x00020003
_TRANSFER_SYNTAX: Final = 0x00020010
_META_UIDS: Final = frozenset({_MEDIA_SOP_CLASS, _MEDIA_SOP_INSTANCE, _TRANSFER_SYNTAX})
_SOP_CLASS: Final = 0x00080016
_SOP_INSTANCE: Final = 0x00080018


class NotSendableError(ValueError):
    """The file lacks what a C-STORE request needs. The text says what, without a value of the file."""


@dataclass(frozen=True, kw_only=True)
class Part10Head:
    """What a file is, how its data set is encoded, and at which byte the data set begins."""

    sop_class_uid: str
    sop_instance_uid: str
    transfer_syntax_uid: str
    data_set_offset: int


def read_head(path: Path) -> Part10Head:
    """Read the head of a file in the DICOM file format (PS3.10 7.1).

    The UIDs are those of the data set, as PS3.4 B.2.1 wants them, and those of the file meta information where the data
    set cannot be looked into. Raises ``NotSendableError``, and ``WorkspaceError`` for what is not a readable regular
    file.
    """
    with open_regular(path) as file:
        _refuse_holes(file)
        data = _read(file, 0, _HEAD_BYTES)
        if data[128:_META_START] != b"DICM":
            raise NotSendableError("it is not a DICOM file")
        end = _meta_end(data)
        if end is not None:
            data += _read(file, len(data), end + _HEAD_BYTES)
    meta, offset = _meta(data)
    transfer_syntax_uid = meta.get(_TRANSFER_SYNTAX, "")
    inner = _data_set_uids(data, offset, transfer_syntax_uid)
    return Part10Head(
        sop_class_uid=_checked(inner.get(_SOP_CLASS) or meta.get(_MEDIA_SOP_CLASS, ""), "SOP Class UID"),
        sop_instance_uid=_checked(inner.get(_SOP_INSTANCE) or meta.get(_MEDIA_SOP_INSTANCE, ""), "SOP Instance UID"),
        transfer_syntax_uid=_checked(transfer_syntax_uid, "Transfer Syntax UID"),
        data_set_offset=offset,
    )


def _refuse_holes(file: BinaryIO) -> None:
    """Refuse a file that is said to be far larger than what was ever written to it: sending it would take days."""
    status = os.fstat(file.fileno())
    # A file system that compresses has fewer blocks than bytes, too, but no hole.
    if status.st_size - status.st_blocks * _BLOCK_BYTES > _LARGEST_HOLE_BYTES:
        hole = os.lseek(file.fileno(), 0, os.SEEK_HOLE)
        os.lseek(file.fileno(), 0, os.SEEK_SET)
        if hole < status.st_size:
            raise NotSendableError("most of it was never written: it is a file with holes")


def _read(file: BinaryIO, start: int, end: int) -> bytes:
    """Return the bytes from ``start`` to ``end``, fewer only where the file ends before: one read may give less."""
    parts: list[bytes] = []
    while start < end and (part := file.read(end - start)):
        parts.append(part)
        start += len(part)
    return b"".join(parts)


def _meta_end(data: bytes) -> int | None:
    """Return where the file meta information says that it ends (PS3.10 7.1, (0002,0000)); None where it does not."""
    for tag, value, offset in _elements(data, _META_START, explicit=True, endian="<"):
        if tag != _META_GROUP_LENGTH or len(value) != 4:
            break
        end = offset + int.from_bytes(value, "little")
        if end > _LARGEST_META_BYTES:
            raise NotSendableError(f"its file meta information is longer than {_LARGEST_META_BYTES} bytes")
        return end
    return None


def _meta(data: bytes) -> tuple[dict[int, str], int]:
    """Return the values of the file meta information, and where the data set begins.

    The elements are believed, not the group length, which writers get wrong: behind the last whole one of group 0002
    must stand something of another group.
    """
    meta: dict[int, str] = {}
    offset = _META_START
    for tag, value, offset_after in _elements(data, _META_START, explicit=True, endian="<"):
        if tag >> 16 != _META_GROUP:
            break
        meta[tag] = _uid(value) if tag in _META_UIDS else ""
        offset = offset_after
    if len(data) < offset + 8:
        raise NotSendableError("it has no whole data set")
    if int.from_bytes(data[offset : offset + 2], "little") == _META_GROUP:
        raise NotSendableError("its file meta information is incomplete")
    return meta, offset


def _data_set_uids(data: bytes, offset: int, transfer_syntax_uid: str) -> dict[int, str]:
    found: dict[int, str] = {}
    if transfer_syntax_uid in _DEFLATED:
        return found
    endian = ">" if transfer_syntax_uid == _EXPLICIT_BIG else "<"
    for tag, value, _ in _elements(data, offset, explicit=transfer_syntax_uid != _IMPLICIT_LITTLE, endian=endian):
        if tag > _SOP_INSTANCE:
            break
        if tag in (_SOP_CLASS, _SOP_INSTANCE):
            found[tag] = _uid(value)
    return found


def _elements(data: bytes, offset: int, *, explicit: bool, endian: str) -> Iterator[tuple[int, bytes, int]]:
    """Yield tag, value and the offset behind it, as far as the elements are whole (PS3.5 7.1)."""
    while offset + 8 <= len(data):
        group, element = struct.unpack_from(endian + "HH", data, offset)
        if not explicit:
            (length,) = struct.unpack_from(endian + "L", data, offset + 4)
            start = offset + 8
        elif data[offset + 4 : offset + 6] in _LONG_VRS:
            if offset + 12 > len(data):
                return
            (length,) = struct.unpack_from(endian + "L", data, offset + 8)
            start = offset + 12
        else:
            (length,) = struct.unpack_from(endian + "H", data, offset + 6)
            start = offset + 8
        if length == _UNDEFINED_LENGTH or start + length > len(data):
            return
        offset = start + length
        yield group << 16 | element, data[start:offset], offset


def _uid(value: bytes) -> str:
    return value.rstrip(b"\0 ").decode("ascii", errors="replace")


def _checked(uid: str, name: str) -> str:
    if not uid:
        raise NotSendableError(f"it has no {name}")
    # PS3.5 9.1. What is not a UID does not go into a request, and is not repeated in a message: it may be anything.
    if len(uid) > 64 or not _UID.match(uid):
        raise NotSendableError(f"its {name} is not a valid UID")
    return uid
