"""A C-STORE sender that only writes prepared bytes: what is measured is the receiver, and not the sender.

One association, one presentation context, instances one after another (PS3.8 9.3, PS3.7 9.3.1).
"""

from __future__ import annotations

import socket
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pydicom

_CONTEXT_ID = 1
_APPLICATION_CONTEXT = b"1.2.840.10008.3.1.1.1"
_ASSOCIATE_RQ, _ASSOCIATE_AC, _P_DATA, _RELEASE_RQ, _RELEASE_RP = 0x01, 0x02, 0x04, 0x05, 0x06


@dataclass(frozen=True, kw_only=True)
class PreparedInstance:
    """One instance as it goes over the wire: its command and its data set, without PDU headers."""

    command: bytes
    data_set: bytes


@dataclass(frozen=True, kw_only=True)
class PreparedStudy:
    """Instances of one SOP class in one transfer syntax."""

    sop_class_uid: str
    transfer_syntax_uid: str
    instances: tuple[PreparedInstance, ...]


def prepare(files: Sequence[Path]) -> PreparedStudy:
    """Read ``files``, all of one SOP class and one transfer syntax, into memory."""
    instances = []
    for path in files:
        header = pydicom.dcmread(path, stop_before_pixels=True)
        content = path.read_bytes()
        meta_length = int.from_bytes(content[140:144], "little")  # (0002,0000), PS3.10 7.1
        command = _store_request(str(header.SOPClassUID), str(header.SOPInstanceUID), len(instances) + 1)
        instances.append(PreparedInstance(command=command, data_set=content[144 + meta_length :]))
    return PreparedStudy(
        sop_class_uid=str(header.SOPClassUID),
        transfer_syntax_uid=str(header.file_meta.TransferSyntaxUID),
        instances=tuple(instances),
    )


def send(study: PreparedStudy, *, port: int, called_ae_title: str) -> None:
    """Send a prepared study to this host's ``port`` and return when the release is answered.

    Raises ``RuntimeError`` for anything but Success.
    """
    with socket.create_connection(("127.0.0.1", port)) as connection:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        stream = connection.makefile("rb", buffering=65536)
        connection.sendall(_associate_request(study, called_ae_title))
        kind, answer = _read_pdu(stream)
        if kind != _ASSOCIATE_AC:
            raise RuntimeError(f"the association was not accepted: PDU type {kind}")
        fragment_bytes = min(_max_pdu_bytes(answer) or 1 << 20, 1 << 20) - 6
        for instance in study.instances:
            connection.sendall(_pdv(instance.command, is_command=True, is_last=True))
            view = memoryview(instance.data_set)
            for start in range(0, len(view), fragment_bytes):
                fragment = view[start : start + fragment_bytes]
                connection.sendall(_pdv(fragment, is_command=False, is_last=start + fragment_bytes >= len(view)))
            kind, answer = _read_pdu(stream)
            if kind != _P_DATA or _status(answer) != 0:
                raise RuntimeError(f"an instance was not stored: PDU type {kind}, {answer[-16:].hex()}")
        connection.sendall(struct.pack(">BBII", _RELEASE_RQ, 0, 4, 0))
        kind, _ = _read_pdu(stream)
        if kind != _RELEASE_RP:
            raise RuntimeError(f"the release was not answered: PDU type {kind}")


def _associate_request(study: PreparedStudy, called_ae_title: str) -> bytes:
    context = _item(0x30, study.sop_class_uid.encode()) + _item(0x40, study.transfer_syntax_uid.encode())
    user = _item(0x51, struct.pack(">I", 1 << 20)) + _item(0x52, b"1.2.826.0.1.3680043.8.498.1")
    body = struct.pack(">HH16s16s32x", 1, 0, called_ae_title.ljust(16).encode(), b"BENCHMARK".ljust(16))
    body += _item(0x10, _APPLICATION_CONTEXT)
    body += _item(0x20, struct.pack(">BBBB", _CONTEXT_ID, 0, 0, 0) + context)
    body += _item(0x50, user)
    return struct.pack(">BBI", _ASSOCIATE_RQ, 0, len(body)) + body


def _item(kind: int, content: bytes) -> bytes:
    return struct.pack(">BBH", kind, 0, len(content)) + content


def _pdv(content: bytes | memoryview, *, is_command: bool, is_last: bool) -> bytes:
    control = is_command | is_last << 1
    return struct.pack(">BBIIBB", _P_DATA, 0, len(content) + 6, len(content) + 2, _CONTEXT_ID, control) + bytes(content)


def _store_request(sop_class_uid: str, sop_instance_uid: str, message_id: int) -> bytes:
    elements = _uid(0x0002, sop_class_uid) + _us(0x0100, 0x0001) + _us(0x0110, message_id % 65536) + _us(0x0700, 0)
    elements += _us(0x0800, 0x0001) + _uid(0x1000, sop_instance_uid)
    return struct.pack("<HHII", 0, 0, 4, len(elements)) + elements


def _us(element: int, value: int) -> bytes:
    return struct.pack("<HHIH", 0, element, 2, value)


def _uid(element: int, value: str) -> bytes:
    padded = value.encode() + b"\0" * (len(value) % 2)
    return struct.pack("<HHI", 0, element, len(padded)) + padded


def _read_pdu(stream: object) -> tuple[int, bytes]:
    header = stream.read(6)  # type: ignore[attr-defined]
    kind, _, length = struct.unpack(">BBI", header)
    return kind, stream.read(length)  # type: ignore[attr-defined]


def _max_pdu_bytes(associate_accept: bytes) -> int:
    position = 68  # behind the fixed fields of PS3.8 table 9-17
    while position < len(associate_accept):
        kind, _, length = struct.unpack_from(">BBH", associate_accept, position)
        if kind == 0x50:
            position += 4  # the sub-items of User Information
            continue
        if kind == 0x51:
            (value,) = struct.unpack_from(">I", associate_accept, position + 4)
            return int(value)
        position += 4 + length
    return 0


def _status(p_data: bytes) -> int:
    position = 6  # the header of the one PDV that holds the response's command
    while position < len(p_data):
        _, element, length = struct.unpack_from("<HHI", p_data, position)
        if element == 0x0900:
            (value,) = struct.unpack_from("<H", p_data, position + 8)
            return int(value)
        position += 8 + length
    raise RuntimeError("the response has no status")
