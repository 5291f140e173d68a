"""A C-STORE sender that only writes prepared bytes: what is measured is the receiver, and not the sender.

Each association is a process of its own; all PDUs of all instances are made before the clock starts (PS3.8 9.3, PS3.7
9.3.1). One presentation context, instances one after another; or, where a receiver agrees on a window of asynchronous
operations, as many of them on their way at once (PS3.7 D.3.3.3).
"""

from __future__ import annotations

import multiprocessing
import os
import socket
import struct
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import pydicom

_CONTEXT_ID = 1
_APPLICATION_CONTEXT = b"1.2.840.10008.3.1.1.1"
_ASSOCIATE_RQ, _ASSOCIATE_AC, _P_DATA, _RELEASE_RQ, _RELEASE_RP = 0x01, 0x02, 0x04, 0x05, 0x06
_LARGEST_PDU_BYTES = 1 << 20
_NO_LIMIT = 0xFFFF


@dataclass(frozen=True, kw_only=True)
class PreparedInstance:
    """One instance as it goes over the wire: its command and its data set, without PDU headers."""

    sop_instance_uid: bytes
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
        command = store_request(str(header.SOPClassUID), str(header.SOPInstanceUID), len(instances) + 1)
        uid = str(header.SOPInstanceUID).encode()
        data_set = content[144 + meta_length :]
        instances.append(PreparedInstance(sop_instance_uid=uid, command=command, data_set=data_set))
    return PreparedStudy(
        sop_class_uid=str(header.SOPClassUID),
        transfer_syntax_uid=str(header.file_meta.TransferSyntaxUID),
        instances=tuple(instances),
    )


class Association:
    """An open association. Raises ``RuntimeError`` for any answer that is not the good one.

    It proposes a ``window``, and keeps to what is agreed.
    """

    def __init__(self, study: PreparedStudy, *, port: int, called_ae_title: str, window: int = 1) -> None:
        self._connection = socket.create_connection(("127.0.0.1", port))
        self._connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._connection.sendall(_associate_request(study, called_ae_title, window))
        kind, answer = self._read_pdu()
        if kind != _ASSOCIATE_AC:
            raise RuntimeError(f"the association was not accepted: PDU type {kind}")
        agreed = _sub_item(answer, 0x53)
        self.window = (int.from_bytes(agreed[:2], "big") or _NO_LIMIT) if agreed else 1
        self.fragment_bytes = min(_max_pdu_bytes(answer) or _LARGEST_PDU_BYTES, _LARGEST_PDU_BYTES) - 6

    def send(self, messages: Sequence[bytes]) -> None:
        """Send messages of ``encode``."""
        for message_id, status in self.answers(messages):
            if status != 0:
                raise RuntimeError(f"instance {message_id} was not stored: 0x{status:04X}")

    def answers(self, messages: Sequence[bytes]) -> Iterator[tuple[int, int]]:
        """Send messages, with no more of them unanswered than the window allows; yield Message ID and status of each
        answer as it comes.
        """
        unanswered = 0
        for message in messages:
            if unanswered == self.window:
                yield self._read_answer()
                unanswered -= 1
            self._connection.sendall(message)
            unanswered += 1
        for _ in range(unanswered):
            yield self._read_answer()

    def release(self) -> None:
        """Release, and return when that is answered."""
        self._connection.sendall(struct.pack(">BBII", _RELEASE_RQ, 0, 4, 0))
        kind, _ = self._read_pdu()
        if kind != _RELEASE_RP:
            raise RuntimeError(f"the release was not answered: PDU type {kind}")
        self._connection.close()

    def close(self) -> None:
        """Close the connection, without a word."""
        self._connection.close()

    def _read_answer(self) -> tuple[int, int]:
        kind, answer = self._read_pdu()
        if kind != _P_DATA:
            raise RuntimeError(f"an instance was not answered: PDU type {kind}, {answer[-16:].hex()}")
        return _number(answer, 0x0120), _status(answer)

    def _read_pdu(self) -> tuple[int, bytes]:
        kind, _, length = struct.unpack(">BBI", self._read(6))
        return kind, self._read(length)

    def _read(self, count: int) -> bytes:
        content = self._connection.recv(count, socket.MSG_WAITALL)
        if len(content) != count:
            raise RuntimeError("the connection was closed")
        return content


def encode(study: PreparedStudy, fragment_bytes: int) -> list[bytes]:
    """Return each instance as all its PDUs, whose fragments have ``fragment_bytes``."""
    return [
        _pdv(instance.command, is_command=True, is_last=True)
        + b"".join(
            _pdv(
                instance.data_set[start : start + fragment_bytes],
                is_command=False,
                is_last=start + fragment_bytes >= len(instance.data_set),
            )
            for start in range(0, len(instance.data_set), fragment_bytes)
        )
        for instance in study.instances
    ]


def store_request(sop_class_uid: str, sop_instance_uid: str, message_id: int) -> bytes:
    """Return the command of a C-STORE-RQ (PS3.7 9.3.1.1)."""
    elements = _uid(0x0002, sop_class_uid) + _us(0x0100, 0x0001) + _us(0x0110, message_id % 65536) + _us(0x0700, 0)
    elements += _us(0x0800, 0x0001) + _uid(0x1000, sop_instance_uid)
    return struct.pack("<HHII", 0, 0, 4, len(elements)) + elements


def send(
    study: PreparedStudy,
    *,
    port: int,
    called_ae_title: str,
    associations: int,
    round_number: int = 0,
    window: int = 1,
) -> float:
    """Send a study over each of ``associations`` side by side; return the seconds from first byte to last release.

    Each association of each round sends instances with UIDs of their own, as different studies have.
    """
    context = multiprocessing.get_context("fork")
    barrier, failures = context.Barrier(associations + 1), context.SimpleQueue()

    def send_one(number: int) -> None:
        try:
            own = _with_own_uids(study, digits=b"%04d%03d" % (round_number, number))
            # The size of fragments is the receiver's to say, and another association asks for it.
            probe = Association(own, port=port, called_ae_title=called_ae_title)
            messages = encode(own, probe.fragment_bytes)
            probe.release()
            barrier.wait(timeout=120)
            association = Association(own, port=port, called_ae_title=called_ae_title, window=window)
            association.send(messages)
            association.release()
        except BaseException as error:
            failures.put(f"{type(error).__name__}: {error}")
            barrier.abort()
        finally:
            os._exit(0)

    processes = [context.Process(target=send_one, args=(number,)) for number in range(associations)]
    for process in processes:
        process.start()
    try:
        barrier.wait(timeout=120)
        began = time.perf_counter()
    except threading.BrokenBarrierError:
        began = 0.0
    for process in processes:
        process.join()
    seconds = time.perf_counter() - began
    if not failures.empty():
        raise RuntimeError(failures.get())
    return seconds


def _with_own_uids(study: PreparedStudy, *, digits: bytes) -> PreparedStudy:
    """Return the same study with SOP Instance UIDs that end in ``digits``."""
    instances = []
    for instance in study.instances:
        uid = instance.sop_instance_uid
        own = uid[: -len(digits)] + digits
        # Once in the command, and once in the data set, at (0008,0018).
        command, data_set = instance.command.replace(uid, own), instance.data_set.replace(uid, own, 1)
        instances.append(PreparedInstance(sop_instance_uid=own, command=command, data_set=data_set))
    return replace(study, instances=tuple(instances))


def _associate_request(study: PreparedStudy, called_ae_title: str, window: int) -> bytes:
    context = _item(0x30, study.sop_class_uid.encode()) + _item(0x40, study.transfer_syntax_uid.encode())
    user = _item(0x51, struct.pack(">I", 1 << 20)) + _item(0x52, b"1.2.826.0.1.3680043.8.498.1")
    if window != 1:
        user += _item(0x53, struct.pack(">HH", window, 1))
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


def _us(element: int, value: int) -> bytes:
    return struct.pack("<HHIH", 0, element, 2, value)


def _uid(element: int, value: str) -> bytes:
    padded = value.encode() + b"\0" * (len(value) % 2)
    return struct.pack("<HHI", 0, element, len(padded)) + padded


def _max_pdu_bytes(associate_accept: bytes) -> int:
    return int.from_bytes(_sub_item(associate_accept, 0x51), "big")


def _sub_item(associate_accept: bytes, wanted: int) -> bytes:
    """Return a sub-item of User Information; nothing where it is not there."""
    position = 68  # behind the fixed fields of PS3.8 table 9-17
    while position < len(associate_accept):
        kind, _, length = struct.unpack_from(">BBH", associate_accept, position)
        position += 4
        if kind == wanted:
            return associate_accept[position : position + length]
        if kind != 0x50:  # the sub-items of User Information
            position += length
    return b""


def _status(p_data: bytes) -> int:
    return _number(p_data, 0x0900)


def _number(p_data: bytes, wanted: int) -> int:
    position = 6  # the header of the one PDV that holds the response's command
    while position < len(p_data):
        _, element, length = struct.unpack_from("<HHI", p_data, position)
        if element == wanted:
            (value,) = struct.unpack_from("<H", p_data, position + 8)
            return int(value)
        position += 8 + length
    raise RuntimeError(f"the response has no (0000,{wanted:04X})")
