"""What a DICOM file that comes in pieces says of itself before its data set (PS3.10 7.1).

Pure, and made for hostile bytes.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import Final

from dicom_gateway.uid import sent_uid

LONGEST_HEAD_BYTES: Final = 128 * 1024

_META: Final = 0x0002
_GROUP_LENGTH: Final = 0x0000
_SOP_CLASS_UID: Final = 0x0002
_SOP_INSTANCE_UID: Final = 0x0003
_TRANSFER_SYNTAX_UID: Final = 0x0010
_PREFIX_AT: Final = 128
_META_AT: Final = 132
_LONG_LENGTH: Final = frozenset(b"OB OD OF OL OV OW SQ SV UC UN UR UT UV".split())
_TAG: Final = struct.Struct("<HH").unpack_from
_SHORT: Final = struct.Struct("<H").unpack_from
_LONG: Final = struct.Struct("<L").unpack_from


class HeadError(ValueError):
    """The bytes do not begin as a DICOM file. The message quotes nothing of them."""


@dataclass(frozen=True, kw_only=True)
class Part10Head:
    """All three are UIDs. The data set begins at ``data_set_at``."""

    sop_class_uid: str
    sop_instance_uid: str
    transfer_syntax_uid: str
    data_set_at: int


def read_part10_head(beginning: bytes | bytearray) -> Part10Head | None:
    """Return the head of a file of which this is the beginning; None where more of it is needed.

    The length that the meta information says of itself is believed only where elements end there. Some writers leave it
    out: then the meta information goes on as long as there are elements of its group. Raises ``HeadError``.
    """
    if len(beginning) < _META_AT + 8:
        return None
    if beginning[_PREFIX_AT:_META_AT] != b"DICM":
        raise HeadError("it does not begin as a DICOM file")
    values: dict[int, bytes] = {}
    at, end = _META_AT, None
    while end is None or at < end:
        found = _element(beginning, at)
        if found is None:
            if len(beginning) > LONGEST_HEAD_BYTES:
                raise HeadError("its file meta information is too long")
            return None
        group, number, value, behind = found
        if group != _META:
            break
        if number == _GROUP_LENGTH and at == _META_AT and len(value) == 4:
            end = behind + _LONG(value)[0]
        values.setdefault(number, value)
        at = behind
    if end is not None and at != end:
        raise HeadError("its file meta information is longer or shorter than it says")
    return _head(values, data_set_at=at)


def _element(data: bytes | bytearray, at: int) -> tuple[int, int, bytes, int] | None:
    """Return group, number, value and end of an element; None where it is not there yet. Of others, only the group."""
    if len(data) < at + 8:
        return None
    group, number = _TAG(data, at)
    if group != _META:
        return group, number, b"", at
    if bytes(data[at + 4 : at + 6]) in _LONG_LENGTH:
        if len(data) < at + 12:
            return None
        start, length = at + 12, _LONG(data, at + 8)[0]
    else:
        start, length = at + 8, _SHORT(data, at + 6)[0]
    if length > LONGEST_HEAD_BYTES:
        raise HeadError("an element of its file meta information is too long")
    return None if len(data) < start + length else (group, number, bytes(data[start : start + length]), start + length)


def _head(values: dict[int, bytes], *, data_set_at: int) -> Part10Head:
    uids = {}
    for number, name in (
        (_SOP_CLASS_UID, "SOP Class UID"),
        (_SOP_INSTANCE_UID, "SOP Instance UID"),
        (_TRANSFER_SYNTAX_UID, "Transfer Syntax UID"),
    ):
        uid = sent_uid(values.get(number, b""))
        if uid is None:
            raise HeadError(f"its file meta information has no {name}, or one that is none")
        uids[number] = uid
    return Part10Head(
        sop_class_uid=uids[_SOP_CLASS_UID],
        sop_instance_uid=uids[_SOP_INSTANCE_UID],
        transfer_syntax_uid=uids[_TRANSFER_SYNTAX_UID],
        data_set_at=data_set_at,
    )
