"""The command of a C-STORE, and the answer to it, as bytes (PS3.7 6.3.1, 9.3.1). Pure, and made for hostile bytes."""

from __future__ import annotations

import struct
from typing import Final, NamedTuple

LONGEST_COMMAND_BYTES: Final = 64 * 1024
"""A command has some hundred bytes; what grows beyond this is refused as an attack."""

_C_STORE_RQ: Final = 0x0001
_NO_DATA_SET: Final = 0x0101

_AFFECTED_SOP_CLASS_UID: Final = 0x0002
_COMMAND_FIELD: Final = 0x0100
_MESSAGE_ID: Final = 0x0110
_DATA_SET_TYPE: Final = 0x0800
_AFFECTED_SOP_INSTANCE_UID: Final = 0x1000

_ELEMENT: Final = struct.Struct("<HHL").unpack_from
_NUMBER: Final = struct.Struct("<H").unpack_from
_LONGEST_ECHOED_BYTES: Final = 64

_P_DATA: Final = 0x04
_LAST_OF_COMMAND: Final = 0x03
# PDU and PDV header (PS3.8 9.3.5), then Command Group Length.
_RESPONSE_HEAD: Final = struct.Struct(">BxLLBB").pack
_GROUP_LENGTH: Final = struct.Struct("<HHLL").pack
_RESPONSE_NUMBERS: Final = struct.Struct("<HHLH HHLH HHLH HHLH").pack
_UID_HEAD: Final = struct.Struct("<HHL").pack


class StoreRequest(NamedTuple):
    """A C-STORE-RQ that a data set follows. The UIDs are as they were sent, and may be anything."""

    message_id: int
    sop_class_uid: bytes
    sop_instance_uid: bytes


def store_request(command: bytes) -> StoreRequest | None:
    """Return what a command set says where it is a C-STORE-RQ with a data set, None where it is anything else."""
    uids = {_AFFECTED_SOP_CLASS_UID: b"", _AFFECTED_SOP_INSTANCE_UID: b""}
    numbers = {_COMMAND_FIELD: 0, _MESSAGE_ID: 0, _DATA_SET_TYPE: _NO_DATA_SET}
    at, end = 0, len(command)
    while at + 8 <= end:
        group, element, length = _ELEMENT(command, at)
        at += 8
        if group or at + length > end:
            return None
        if element in uids:
            uids[element] = command[at : at + length]
        elif element in numbers and length == 2:
            numbers[element] = _NUMBER(command, at)[0]
        at += length
    if at != end or numbers[_COMMAND_FIELD] != _C_STORE_RQ or numbers[_DATA_SET_TYPE] == _NO_DATA_SET:
        return None
    return StoreRequest(
        message_id=numbers[_MESSAGE_ID],
        sop_class_uid=uids[_AFFECTED_SOP_CLASS_UID],
        sop_instance_uid=uids[_AFFECTED_SOP_INSTANCE_UID],
    )


def store_response(request: StoreRequest, *, context_id: int, status: int) -> bytes:
    """Return the P-DATA-TF PDU that answers a request with ``status`` (PS3.7 9.3.1.2)."""
    uids = _uid(_AFFECTED_SOP_CLASS_UID, request.sop_class_uid)
    instance_uid = _uid(_AFFECTED_SOP_INSTANCE_UID, request.sop_instance_uid)
    # fmt: off
    numbers = _RESPONSE_NUMBERS(
        0, _COMMAND_FIELD, 2, 0x8001,
        0, 0x0120, 2, request.message_id,
        0, _DATA_SET_TYPE, 2, _NO_DATA_SET,
        0, 0x0900, 2, status,
    )
    # fmt: on
    elements = uids + numbers + instance_uid
    length = 12 + len(elements)
    head = _RESPONSE_HEAD(_P_DATA, length + 6, length + 2, context_id, _LAST_OF_COMMAND)
    return head + _GROUP_LENGTH(0, 0, 4, len(elements)) + elements


def _uid(element: int, sent: bytes) -> bytes:
    """Return a UID as it was sent; nothing where it is none that could be sent back."""
    if not sent or len(sent) > _LONGEST_ECHOED_BYTES:
        return b""
    even = sent + b"\0" * (len(sent) & 1)
    return _UID_HEAD(0, element, len(even)) + even
