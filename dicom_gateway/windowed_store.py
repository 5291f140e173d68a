"""The path of ``fast_store`` for a peer with which a window of asynchronous operations was agreed (PS3.7 D.3.3.3).

Such a peer sends on before it is answered. So several instances are taken while the disk writes the first of them, and
then forced onto it together, which takes little longer than one: a file system that has written out its notes on one of
them has nothing left to do for the others. No thread is needed for that. Several, each with a sync of its own, were
slower as soon as several peers sent, and TLS does not bear two that use a connection.
"""

from __future__ import annotations

import select
import socket
import time
from collections.abc import Callable, Container
from dataclasses import dataclass
from ssl import SSLSocket
from typing import Final

from dicom_gateway.dimse_command import StoreRequest, store_response
from dicom_gateway.fast_store import Ending, FastStore, Instance, LeftError, Patience
from dicom_gateway.uid import sent_uid

MOST_OUTSTANDING: Final = 16
"""How many C-STOREs a peer may have sent that are not answered yet. Each is an open file, and up to 64 KiB."""
_LONGEST_WAIT_SECONDS: Final = 0.1
"""How long an answer waits for instances that come without a pause."""


@dataclass(frozen=True, slots=True)
class _Unanswered:
    """A C-STORE that has come whole."""

    request: StoreRequest
    uid: str | None
    context_id: int
    instance: Instance
    size_bytes: int
    began: float
    ended: float


class WindowedStore(FastStore):
    """The same path, for at most ``window`` C-STOREs at once.

    They are answered as soon as nothing more is there to be received, or half a window of them has come: the peer sends
    the other half meanwhile. A peer that sends more than was agreed is not read from until it is answered. So is one
    that uses a Message ID or a SOP Instance UID again before it is answered: what it is told of the one cannot be taken
    for the other, and no instance is held against one that may still be thrown away.
    """

    def __init__(
        self,
        connection: socket.socket,
        *,
        window: int,
        contexts: Container[int],
        begin: Callable[[StoreRequest, int], Instance],
        is_ended: Callable[[], bool],
        patience: Patience,
        answered: Callable[[int, int, float], object] = lambda _status, _size_bytes, _seconds: None,
    ) -> None:
        super().__init__(
            connection,
            contexts=contexts,
            begin=self._begin_once_it_may,
            is_ended=is_ended,
            patience=patience,
            answered=answered,
        )
        self._most_at_once = max(1, window // 2)
        self._begin_now = begin
        self._uid: str | None = None
        self._unanswered: list[_Unanswered] = []
        self._more = select.poll()
        self._more.register(connection, select.POLLIN)

    def serve(self, received: bytes) -> tuple[Ending, bytes]:
        """Serve C-STOREs as ``FastStore`` does. Once this returns, all that came whole is kept, and answered."""
        try:
            ending, rest = super().serve(received)
            if ending is not Ending.CLOSED:
                self._answer_all()
        except LeftError as left:
            return left.ending, left.rest
        finally:
            # Nobody is there any more to be told. What came whole is kept all the same.
            for one in self._unanswered:
                one.instance.finish()
            self._unanswered.clear()
        return ending, rest

    def _begin_once_it_may(self, request: StoreRequest, context_id: int) -> Instance:
        uid = sent_uid(request.sop_instance_uid)
        if any(one.uid == uid or one.request.message_id == request.message_id for one in self._unanswered):
            self._answer_all()
        self._uid = uid
        return self._begin_now(request, context_id)

    def _end_message(self) -> None:
        assert self._request is not None
        assert self._instance is not None
        one = _Unanswered(
            request=self._request,
            uid=self._uid,
            context_id=self._context_id,
            instance=self._instance,
            size_bytes=self._size_bytes,
            began=self._began,
            ended=time.monotonic(),
        )
        self._command, self._request, self._instance = b"", None, None
        self._unanswered.append(one)
        one.instance.end()
        if len(self._unanswered) >= self._most_at_once:
            self._answer_all()

    def _receive(self, deadline: float | None) -> None:
        if self._unanswered and not self._has_more_in_time():
            self._answer_all()
        super()._receive(None if deadline is None else self._deadline)

    def _while_nothing_comes(self) -> None:
        # There was something to read, and nothing of it was for us: TLS speaks with its peer, too.
        if self._unanswered:
            self._answer_all()

    def _has_more_in_time(self) -> bool:
        if time.monotonic() > self._unanswered[0].ended + _LONGEST_WAIT_SECONDS:
            return False
        is_pending = isinstance(self._connection, SSLSocket) and self._connection.pending() > 0
        return is_pending or bool(self._more.poll(0))

    def _answer_all(self) -> None:
        began = time.monotonic()
        for one in self._unanswered:
            one.instance.make_whole()
        while self._unanswered:
            one = self._unanswered.pop(0)
            status = one.instance.finish()
            response = store_response(one.request, context_id=one.context_id, status=status)
            self._answer(response, status=status, size_bytes=one.size_bytes, began=one.began)
        # It is not the peer that took so long.
        self._deadline += time.monotonic() - began
