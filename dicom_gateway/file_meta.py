"""Preamble, prefix and file meta information, which stand before a received data set (PS3.10 7.1). Pure."""

from __future__ import annotations

import struct
from functools import lru_cache
from typing import Final

IMPLEMENTATION_CLASS_UID: Final = "2.25.240862801318732435729887109383896307898"
"""Names this software as writer of a file and as peer of an association (PS3.7 D.3.3.2). Made of a UUID."""
IMPLEMENTATION_VERSION_NAME: Final = "DICOMFLOW"

_PREAMBLE: Final = b"\0" * 128 + b"DICM"
_VERSION: Final = b"\x02\0\x01\0OB\0\0\x02\0\0\0\0\x01"
_HEAD: Final = struct.Struct("<HH2sH").pack
_GROUP_LENGTH: Final = struct.Struct("<HH2sHL").pack


def _element(number: int, vr: bytes, text: str, padding: bytes) -> bytes:
    value = text.encode("ascii")
    value += padding * (len(value) & 1)
    return _HEAD(0x0002, number, vr, len(value)) + value


_WRITER: Final = _element(0x0012, b"UI", IMPLEMENTATION_CLASS_UID, b"\0") + _element(
    0x0013, b"SH", IMPLEMENTATION_VERSION_NAME, b" "
)


def file_meta(*, sop_class_uid: str, sop_instance_uid: str, transfer_syntax_uid: str) -> bytes:
    """Return what a file begins with. The UIDs are known to be UIDs."""
    before, after = _around(sop_class_uid, transfer_syntax_uid)
    elements = before + _element(0x0003, b"UI", sop_instance_uid, b"\0") + after
    return _PREAMBLE + _GROUP_LENGTH(0x0002, 0x0000, b"UL", 4, len(elements)) + elements


@lru_cache(maxsize=256)
def _around(sop_class_uid: str, transfer_syntax_uid: str) -> tuple[bytes, bytes]:
    """Return what stands before and after the SOP Instance UID: the same for all of a series."""
    before = _VERSION + _element(0x0002, b"UI", sop_class_uid, b"\0")
    return before, _element(0x0010, b"UI", transfer_syntax_uid, b"\0") + _WRITER
