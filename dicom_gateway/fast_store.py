"""The C-STORE path at line speed: P-DATA of C-STOREs from a socket to files, everything else is handed back.

Data sets go to their files as they come, fragment by fragment, out of one buffer an association: memory does not grow
with the size of an object, nor with what a PDU says about its length (PS3.8 9.3.5, PS3.7 6.3.1, 9.3.1).
"""

from __future__ import annotations

import enum
import socket
import struct
import time
from collections.abc import Callable, Container
from dataclasses import dataclass
from typing import Final, Protocol

from dicom_gateway.dimse_command import LONGEST_COMMAND_BYTES, StoreRequest, store_request, store_response
from dicom_gateway.tls import NOTHING_YET

_BUFFER_BYTES: Final = 256 * 1024
_P_DATA: Final = 0x04
_A_ABORT: Final = 0x07
_PDU_HEADER_BYTES: Final = 6
_PDV_HEADER_BYTES: Final = 6
_IS_COMMAND: Final = 0x01
_IS_LAST: Final = 0x02
_PDU_HEADER: Final = struct.Struct(">BxL").unpack_from
_PDU_HEADER_OF: Final = struct.Struct(">BxL").pack
_PDV_HEADER: Final = struct.Struct(">LBB").unpack_from
_PDV_HEADER_OF: Final = struct.Struct(">LBB").pack


class Ending(enum.Enum):
    """Why the path was left."""

    OTHER = "other"
    """Something else than a C-STORE has begun to come; what was read of it is handed back."""
    CLOSED = "closed"
    """The peer, or this side, has closed the connection."""
    SILENT = "silent"
    """Nothing came for too long, or the rest of a PDU came too slowly."""
    INVALID = "invalid"
    """What came is no valid P-DATA-TF PDU, or not one of this association."""


@dataclass(frozen=True, kw_only=True)
class Patience:
    """How long a peer may take."""

    between_messages_seconds: float
    within_message_seconds: float
    """For a message, from its first byte to its last, beyond what its length takes at ``slowest_bytes_per_second``."""
    slowest_bytes_per_second: float = 4 * 1024


class Instance(Protocol):
    """Takes one data set. Raises nothing: what went wrong is in the status that ``finish`` returns."""

    def write(self, fragment: memoryview, /) -> None:
        """Take the next fragment; the memory is used again afterwards."""
        ...

    def end(self) -> None:
        """Take note that its end has come. For several at once: this of each as it ends, then the next of all, …"""
        ...

    def make_whole(self) -> None:
        """… do what may be done before ``finish``, the next."""
        ...

    def finish(self) -> int:
        """Return the status that the request is answered with; the others need not have been called before."""
        ...

    def abandon(self) -> None:
        """Forget the instance: its end will never come."""
        ...


class FastStore:
    """The path for one association. ``contexts`` are the ids of its accepted presentation contexts.

    ``begin`` is called for each request, with the id of its context. ``is_ended`` is asked while nothing comes. The
    connection has a time-out for receives, after which it is asked, and time limits are looked at.
    ``answered`` is called after each response: with the status, the size of the data set, and the seconds since the
    request began to come.
    """

    def __init__(
        self,
        connection: socket.socket,
        *,
        contexts: Container[int],
        begin: Callable[[StoreRequest, int], Instance],
        is_ended: Callable[[], bool],
        patience: Patience,
        answered: Callable[[int, int, float], object] = lambda _status, _size_bytes, _seconds: None,
    ) -> None:
        self._connection = connection
        self._contexts = contexts
        self._begin = begin
        self._is_ended = is_ended
        self._patience = patience
        self._answered = answered
        self._buffer = bytearray(_BUFFER_BYTES)
        self._view = memoryview(self._buffer)
        # What was received and not looked at yet.
        self._start = 0
        self._end = 0
        # The message that is under way: its command as it comes, then what it asks, then where its data set goes.
        self._command = b""
        self._context_id = 0
        self._request: StoreRequest | None = None
        self._instance: Instance | None = None
        self._began = 0.0
        self._deadline = 0.0
        self._size_bytes = 0

    def serve(self, received: bytes) -> tuple[Ending, bytes]:
        """Serve C-STOREs, of which ``received`` may be the beginning, until something else comes.

        Returns why it ended, and what was received of something else: it begins with a PDU, and may go on in the
        middle of one. An instance whose end did not come is abandoned.
        """
        self._view[: len(received)] = received
        self._start, self._end = 0, len(received)
        try:
            while True:
                self._need(_PDU_HEADER_BYTES, deadline=self._deadline if self._command else None)
                kind, length = _PDU_HEADER(self._buffer, self._start)
                if kind != _P_DATA:
                    if self._command and kind != _A_ABORT:
                        return Ending.INVALID, b""
                    return Ending.OTHER, self._rest()
                self._start += _PDU_HEADER_BYTES
                self._serve_pdu(length)
        except LeftError as left:
            return left.ending, left.rest
        finally:
            if self._instance is not None:
                self._instance.abandon()
            self._command, self._request, self._instance = b"", None, None

    def _serve_pdu(self, length: int) -> None:
        """Serve the PDVs of a PDU, of which ``length`` bytes are to come."""
        if not self._command:
            self._began = time.monotonic()
            self._deadline = self._began + self._patience.within_message_seconds
            self._size_bytes = 0
        while True:
            if length < _PDV_HEADER_BYTES:
                raise LeftError(Ending.INVALID)
            if self._end - self._start < _PDV_HEADER_BYTES:
                self._need(_PDV_HEADER_BYTES, deadline=self._deadline)
            pdv_length, context_id, control = _PDV_HEADER(self._buffer, self._start)
            content_length = pdv_length - 2
            if content_length < 0 or content_length > length - _PDV_HEADER_BYTES or context_id not in self._contexts:
                raise LeftError(Ending.INVALID)
            self._start += _PDV_HEADER_BYTES
            length -= _PDV_HEADER_BYTES + content_length
            if control & _IS_COMMAND:
                self._take_command(content_length, context_id)
                if control & _IS_LAST:
                    self._begin_message(rest_of_pdu_bytes=length)
            elif self._request is None or context_id != self._context_id:
                raise LeftError(Ending.INVALID)
            else:
                self._size_bytes += content_length
                self._take_data(content_length)
                if control & _IS_LAST:
                    self._end_message()
            if not length:
                return

    def _take_command(self, length: int, context_id: int) -> None:
        is_out_of_place = self._request is not None or (self._command and context_id != self._context_id)
        if is_out_of_place or len(self._command) + length > LONGEST_COMMAND_BYTES:
            raise LeftError(Ending.INVALID)
        self._need(length, deadline=self._deadline)
        self._command += self._view[self._start : self._start + length]
        self._context_id = context_id
        self._start += length

    def _begin_message(self, *, rest_of_pdu_bytes: int) -> None:
        self._request = store_request(self._command)
        if self._request is None:
            # Put together again as one PDU, and what else is in this PDU as another.
            again = _as_pdu(
                _PDV_HEADER_OF(len(self._command) + 2, self._context_id, _IS_COMMAND | _IS_LAST), self._command
            )
            if rest_of_pdu_bytes:
                again += _PDU_HEADER_OF(_P_DATA, rest_of_pdu_bytes)
            raise LeftError(Ending.OTHER, again + self._rest())
        self._instance = self._begin(self._request, self._context_id)

    def _take_data(self, length: int) -> None:
        assert self._instance is not None
        while length:
            if self._start == self._end:
                self._receive(self._deadline)
            taken = min(length, self._end - self._start)
            self._instance.write(self._view[self._start : self._start + taken])
            self._start += taken
            length -= taken

    def _end_message(self) -> None:
        assert self._request is not None
        assert self._instance is not None
        request, instance = self._request, self._instance
        self._command, self._request, self._instance = b"", None, None
        status = instance.finish()
        response = store_response(request, context_id=self._context_id, status=status)
        self._answer(response, status=status, size_bytes=self._size_bytes, began=self._began)

    def _answer(self, response: bytes, *, status: int, size_bytes: int, began: float) -> None:
        try:
            self._connection.sendall(response)
        except OSError:
            raise LeftError(Ending.CLOSED) from None
        self._answered(status, size_bytes, time.monotonic() - began)

    def _rest(self) -> bytes:
        return bytes(self._view[self._start : self._end])

    def _need(self, count: int, *, deadline: float | None) -> None:
        """See that ``count`` bytes are there to be looked at. Without a deadline, a new message may begin with them."""
        while self._end - self._start < count:
            if self._start + count > _BUFFER_BYTES or self._start == self._end:
                rest = self._rest()
                self._view[: len(rest)] = rest
                self._start, self._end = 0, len(rest)
            self._receive(deadline)

    def _while_nothing_comes(self) -> None:
        """Do what has to be done where a receive was in vain."""

    def _receive(self, deadline: float | None) -> None:
        """Receive what there is, at least one byte."""
        if self._start == self._end:
            self._start = self._end = 0
        began = 0.0
        while True:
            try:
                count = self._connection.recv_into(self._view[self._end :])
            except NOTHING_YET:
                self._while_nothing_comes()
                now = time.monotonic()
                began = began or now
                if self._is_ended():
                    raise LeftError(Ending.CLOSED) from None
                if now > (deadline or began + self._patience.between_messages_seconds):
                    raise LeftError(Ending.SILENT) from None
                continue
            except OSError:
                raise LeftError(Ending.CLOSED) from None
            if count == 0:
                raise LeftError(Ending.CLOSED)
            if deadline is not None and time.monotonic() > deadline:
                raise LeftError(Ending.SILENT)
            self._end += count
            if deadline is not None:
                # Time is granted for what has come, not for what a header says is to come.
                self._deadline += count / self._patience.slowest_bytes_per_second
            return


class LeftError(Exception):
    """The path is left, from somewhere within it."""

    def __init__(self, ending: Ending, rest: bytes = b"") -> None:
        super().__init__(ending)
        self.ending = ending
        self.rest = rest


def _as_pdu(*parts: bytes) -> bytes:
    content = b"".join(parts)
    return _PDU_HEADER_OF(_P_DATA, len(content)) + content
