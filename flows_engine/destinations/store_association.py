"""One association that instances are sent over: requestor and storage SCU in one blocking thread.

pynetdicom encodes and decodes the negotiation. Its own association is not used to send: a second thread of it, which
serves requests of the peer, is to be paused while ``send_c_store`` waits, but ``send_c_store`` trusts a flag that is
still set from the pause before. Now and then that thread is on its way out of the old pause, takes the response off the
queue, logs "Received unexpected C-STORE service message", and the sender waits out its time-out for a response that
came (pynetdicom 3.0.4). Here no second thread exists, and whoever waits for the response is who reads the socket.
"""

from __future__ import annotations

import socket
import struct
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Final, Self

from pydicom.uid import UID
from pynetdicom import PYNETDICOM_IMPLEMENTATION_UID, PYNETDICOM_IMPLEMENTATION_VERSION
from pynetdicom.pdu import A_ABORT_RQ, A_ASSOCIATE_AC, A_ASSOCIATE_RJ, A_ASSOCIATE_RQ, A_RELEASE_RP, A_RELEASE_RQ
from pynetdicom.pdu_primitives import (
    A_ASSOCIATE,
    ImplementationClassUIDNotification,
    ImplementationVersionNameNotification,
    MaximumLengthNotification,
)
from pynetdicom.presentation import PresentationContext, build_context

from flows_engine.destinations.part10_head import Part10Head
from flows_engine.errors import DestinationUnavailableError
from flows_engine.output_files import open_regular

MAX_CONTEXTS: Final = 128

_APPLICATION_CONTEXT: Final = "1.2.840.10008.3.1.1.1"
_OUR_MAX_PDU_BYTES: Final = 16 * 1024
_LARGEST_PDU_READ_BYTES: Final = 1024 * 1024
_LARGEST_PDU_SENT_BYTES: Final = 256 * 1024
_BLOCK_BYTES: Final = 256 * 1024

_PDU_AC, _PDU_RJ, _PDU_DATA, _PDU_RELEASE_RQ, _PDU_RELEASE_RP, _PDU_ABORT = 0x02, 0x03, 0x04, 0x05, 0x06, 0x07
_COMMAND, _LAST = 0x01, 0x02

_STORE_RQ, _STORE_RSP, _NO_DATA_SET = 0x0001, 0x8001, 0x0101


@dataclass(frozen=True, kw_only=True)
class Peer:
    """A storage SCP, and the AE title it knows us by."""

    host: str
    port: int
    ae_title: str
    calling_ae_title: str

    def __str__(self) -> str:
        return f"{self.ae_title}@{self.host}:{self.port}"


@dataclass(frozen=True, kw_only=True)
class Patience:
    """How long to wait for the connection, for the answer to an association request or release, and for a response."""

    connect_seconds: float = 10.0
    association_seconds: float = 30.0
    response_seconds: float = 120.0


class StoreAssociation:
    """An association with ``peer``, open inside a ``with`` block; released at its end, aborted if an exception ends it.

    ``contexts`` are (SOP class, transfer syntax) pairs, 128 at most; ``accepted`` says which of them the peer takes.
    Everything that ends the association early raises ``DestinationUnavailableError``.
    """

    def __init__(self, peer: Peer, *, contexts: Sequence[tuple[str, str]], patience: Patience) -> None:
        self._peer = peer
        self._contexts = {2 * place + 1: context for place, context in enumerate(contexts)}
        self._patience = patience
        self._message_id = 0
        self._fragment_bytes = 0
        self.accepted: dict[tuple[str, str], int] = {}

    def __enter__(self) -> Self:
        request = A_ASSOCIATE_RQ(self._request()).encode()
        self._socket = self._connect()
        try:
            self._socket.settimeout(self._patience.association_seconds)
            self._send(request)
            self._negotiated(*self._read_pdu())
        except BaseException:
            self._abort()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is not None:
            self._abort()
            return
        # Every instance has its answer already: a peer that fails to say goodbye takes nothing back.
        with suppress(DestinationUnavailableError):
            self._socket.settimeout(self._patience.association_seconds)
            self._send(A_RELEASE_RQ().encode())
            while self._read_pdu()[0] not in (_PDU_RELEASE_RP, _PDU_ABORT):
                pass
        self._socket.close()

    def store(self, path: Path, head: Part10Head) -> int:
        """Send the data set of ``path`` as its bytes are, and return the status of the response.

        The context of ``head`` must be among ``accepted``.
        """
        context_id = self.accepted[head.sop_class_uid, head.transfer_syntax_uid]
        self._message_id = self._message_id % 0xFFFF + 1
        self._socket.settimeout(self._patience.response_seconds)
        command = _store_request(head, self._message_id)
        waiting = list(self._pdus(command, context_id, _COMMAND, is_end=True))
        with open_regular(path) as file:
            file.seek(head.data_set_offset)
            block = file.read(_BLOCK_BYTES)
            while True:
                following = file.read(_BLOCK_BYTES) if block else b""
                self._send(b"".join((*waiting, *self._pdus(block, context_id, 0, is_end=not following))))
                waiting = []
                if not following:
                    break
                block = following
        return self._response()

    def _request(self) -> A_ASSOCIATE:
        request = A_ASSOCIATE()
        request.application_context_name = UID(_APPLICATION_CONTEXT)
        request.calling_ae_title = self._peer.calling_ae_title
        request.called_ae_title = self._peer.ae_title
        contexts: list[PresentationContext] = []
        for context_id, (sop_class_uid, transfer_syntax_uid) in self._contexts.items():
            context = build_context(sop_class_uid, transfer_syntax_uid)
            context.context_id = context_id
            contexts.append(context)
        request.presentation_context_definition_list = contexts
        length = MaximumLengthNotification()
        length.maximum_length_received = _OUR_MAX_PDU_BYTES
        implementation = ImplementationClassUIDNotification()
        implementation.implementation_class_uid = PYNETDICOM_IMPLEMENTATION_UID
        version = ImplementationVersionNameNotification()
        version.implementation_version_name = PYNETDICOM_IMPLEMENTATION_VERSION
        request.user_information = [length, implementation, version]
        return request

    def _connect(self) -> socket.socket:
        try:
            connection = socket.create_connection(
                (self._peer.host, self._peer.port), timeout=self._patience.connect_seconds
            )
        except socket.gaierror as error:
            raise DestinationUnavailableError(f"{self._peer} cannot be reached: its host name is not known") from error
        except OSError as error:
            raise DestinationUnavailableError(f"{self._peer} cannot be reached: {_reason(error)}") from error
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return connection

    def _negotiated(self, kind: int, body: bytes) -> None:
        pdu = struct.pack(">BxL", kind, len(body)) + body
        try:
            if kind == _PDU_AC:
                accept = A_ASSOCIATE_AC()
                accept.decode(pdu)
                answer = accept.to_primitive()
                results = {c.context_id: c.result for c in answer.presentation_context_definition_results_list}
                largest = answer.maximum_length_received
                if not results:
                    raise ValueError("no presentation context has a result")  # noqa: TRY301 - it is nonsense, too
            elif kind == _PDU_RJ:
                reject = A_ASSOCIATE_RJ()
                reject.decode(pdu)
                reason = f"{reject.result_str}, {reject.reason_str}"
        except Exception as error:
            raise DestinationUnavailableError(f"{self._peer} answered the association request with nonsense") from error
        if kind == _PDU_RJ:
            raise DestinationUnavailableError(
                f"{self._peer} rejected the association from {self._peer.calling_ae_title}: {reason}"
            )
        if kind != _PDU_AC:
            raise self._went_away(kind)
        self.accepted = {context: id_ for id_, context in self._contexts.items() if results.get(id_) == 0}
        # PS3.8 D.1: the length of a P-DATA-TF PDU's variable field; 0 is no limit. 6 bytes of it head the fragment.
        bounded = min(largest or _LARGEST_PDU_SENT_BYTES, _LARGEST_PDU_SENT_BYTES)
        self._fragment_bytes = max(2, (bounded - 6) // 2 * 2)

    def _pdus(self, data: bytes, context_id: int, control: int, *, is_end: bool) -> Iterator[bytes | memoryview]:
        """Yield P-DATA-TF PDUs of one fragment each (PS3.8 9.3.5 and E.2)."""
        view = memoryview(data)
        for start in range(0, len(data) or 1, self._fragment_bytes):
            fragment = view[start : start + self._fragment_bytes]
            last = _LAST if is_end and start + self._fragment_bytes >= len(data) else 0
            size = len(fragment)
            yield struct.pack(">BxLLBB", _PDU_DATA, size + 6, size + 2, context_id, control | last)
            yield fragment

    def _response(self) -> int:
        command = bytearray()
        needs_data_set: bool | None = None
        while True:
            kind, body = self._read_pdu()
            if kind != _PDU_DATA:
                raise self._went_away(kind)
            for control, fragment in self._fragments(body):
                if needs_data_set is None:
                    command += fragment
                    if not control & _LAST:
                        continue
                    fields = self._checked(_fields(bytes(command)))
                    needs_data_set = fields.get(0x0800) != _NO_DATA_SET
                elif not control & _LAST:
                    continue
                else:
                    needs_data_set = False
                if not needs_data_set:
                    return fields[0x0900]

    def _fragments(self, body: bytes) -> Iterator[tuple[int, bytes]]:
        offset = 0
        while offset < len(body):
            size = int.from_bytes(body[offset : offset + 4], "big")
            if size < 2 or offset + 4 + size > len(body):
                raise DestinationUnavailableError(f"{self._peer} sent a response that cannot be read")
            yield body[offset + 5], body[offset + 6 : offset + 4 + size]
            offset += 4 + size

    def _checked(self, fields: dict[int, int]) -> dict[int, int]:
        if (fields.get(0x0100), fields.get(0x0120)) != (_STORE_RSP, self._message_id) or 0x0900 not in fields:
            raise DestinationUnavailableError(f"{self._peer} sent a response to something that it was not asked")
        return fields

    def _send(self, data: bytes) -> None:
        try:
            self._socket.sendall(data)
        except OSError as error:
            raise DestinationUnavailableError(f"{self._peer} went away: {_reason(error)}") from error

    def _read_pdu(self) -> tuple[int, bytes]:
        kind, length = struct.unpack(">BxL", self._read(6))
        if length > _LARGEST_PDU_READ_BYTES:
            raise DestinationUnavailableError(f"{self._peer} sent a PDU of {length} bytes")
        return kind, self._read(length)

    def _read(self, size: int) -> bytes:
        data = b""
        while len(data) < size:
            try:
                # A peer that leaves Nagle's algorithm on sends the end of a response only after our acknowledgement,
                # which the kernel would put off for 40 ms.
                self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_QUICKACK, 1)
                part = self._socket.recv(size - len(data))
            except OSError as error:
                raise DestinationUnavailableError(f"{self._peer} did not answer: {_reason(error)}") from error
            if not part:
                raise DestinationUnavailableError(f"{self._peer} closed the connection")
            data += part
        return data

    def _went_away(self, kind: int) -> DestinationUnavailableError:
        if kind == _PDU_RELEASE_RQ:
            with suppress(DestinationUnavailableError):
                self._send(A_RELEASE_RP().encode())
            return DestinationUnavailableError(f"{self._peer} released the association before everything was sent")
        if kind == _PDU_ABORT:
            return DestinationUnavailableError(f"{self._peer} aborted the association")
        return DestinationUnavailableError(f"{self._peer} sent a PDU of type {kind:#04x} where none is expected")

    def _abort(self) -> None:
        abort = A_ABORT_RQ()
        abort.source, abort.reason_diagnostic = 0, 0
        with suppress(OSError):
            self._socket.settimeout(1.0)
            self._socket.sendall(abort.encode())
        self._socket.close()


def _store_request(head: Part10Head, message_id: int) -> bytes:
    """Return a C-STORE-RQ command set (PS3.7 9.3.1.1), which is always Implicit VR Little Endian (PS3.7 6.3.1)."""
    elements = b"".join((
        _element(0x0002, _even(head.sop_class_uid)),
        _element(0x0100, struct.pack("<H", _STORE_RQ)),
        _element(0x0110, struct.pack("<H", message_id)),
        _element(0x0700, struct.pack("<H", 0)),
        _element(0x0800, struct.pack("<H", 0x0001)),
        _element(0x1000, _even(head.sop_instance_uid)),
    ))  # fmt: skip
    return _element(0x0000, struct.pack("<L", len(elements))) + elements


def _element(element: int, value: bytes) -> bytes:
    return struct.pack("<HHL", 0x0000, element, len(value)) + value


def _even(uid: str) -> bytes:
    value = uid.encode("ascii")
    return value + b"\0" * (len(value) % 2)


def _fields(command: bytes) -> dict[int, int]:
    """Return the two-byte elements of a command set: all that a response is judged by."""
    fields: dict[int, int] = {}
    offset = 0
    while offset + 8 <= len(command):
        _, element, length = struct.unpack_from("<HHL", command, offset)
        value = command[offset + 8 : offset + 8 + length]
        if len(value) == 2:
            fields[element] = int.from_bytes(value, "little")
        offset += 8 + length
    return fields


def _reason(error: OSError) -> str:
    if isinstance(error, TimeoutError):
        return "no answer in time"
    return (error.strerror or type(error).__name__).lower()
