"""What peers of a web server may hold open, and for how long. uvicorn itself waits for a request as long as it takes.

A connection on which no request is served holds its place only as long as nobody else wants it: whoever connects and
says nothing, or next to nothing, locks nobody out.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable
from typing import Final

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

from dicom_gateway.peers import TOO_MANY_OF_PEER, AssociationLimits
from dicom_gateway.tally import Refusal

HEAD_SECONDS: Final = 20.0
"""A peer may take so long from connecting, or from the first byte of one more request, until its head is complete."""
_UNREAD_SECONDS: Final = 60
"""A peer that does not take what it is told for so long is taken for dead."""
_BUSY: Final = b"HTTP/1.1 503 Service Unavailable\r\nRetry-After: 5\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"


class OpenConnections:
    """The connections of one server. Not for several threads.

    ``refused`` is told why one led to no request: ``busy``, or ``no-request``.
    """

    def __init__(
        self,
        limits: AssociationLimits,
        *,
        refused: Callable[[Refusal], object] = lambda _reason: None,
        head_seconds: float = HEAD_SECONDS,
    ) -> None:
        self._limits = limits
        self._refused = refused
        self.head_seconds = head_seconds
        self._open: dict[BoundedProtocol, str] = {}  # oldest first

    def admit(self, connection: BoundedProtocol, *, address: str) -> bool:
        """Give a connection its place, for which one without a request may have to go; return whether it has one."""
        while rejection := self._limits.rejection(addresses=list(self._open.values()), address=address):
            within = address if rejection is TOO_MANY_OF_PEER else None
            idle = (one for one, where in self._open.items() if one.is_idle and within in (None, where))
            oldest = next(idle, None)
            if oldest is None:
                self._refused("busy")
                return False
            self.drop(oldest)
        self._open[connection] = address
        return True

    def drop(self, connection: BoundedProtocol) -> None:
        """End a connection whose request did not come."""
        self.forget(connection)
        if not connection.has_asked:
            self._refused("no-request")
        connection.transport.abort()

    def forget(self, connection: BoundedProtocol) -> None:
        """Take note that a connection is over."""
        self._open.pop(connection, None)


def protocol_for(connections: OpenConnections) -> type[asyncio.Protocol]:
    """Return what uvicorn makes one of for each connection."""
    return type("Protocol", (BoundedProtocol,), {"open_connections": connections})


class BoundedProtocol(H11Protocol):
    """uvicorn's HTTP/1.1, with an end to its patience."""

    open_connections: OpenConnections

    _deadline: asyncio.TimerHandle | None = None

    @property
    def has_asked(self) -> bool:
        """Whether a request came, ever."""
        return self.cycle is not None

    @property
    def is_idle(self) -> bool:
        """Whether no request is served on it at this moment."""
        return self.cycle is None or self.cycle.response_complete

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Begin, or be told at once that there are too many."""
        super().connection_made(transport)
        if not self.open_connections.admit(self, address=self.client[0] if self.client else ""):
            transport.write(_BUSY)
            transport.close()
            return
        connection = transport.get_extra_info("socket")
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, _UNREAD_SECONDS * 1000)
        self._look_at_deadline()

    def data_received(self, data: bytes) -> None:
        """Take what came."""
        super().data_received(data)
        self._look_at_deadline()

    def on_response_complete(self) -> None:
        """Take note that a request is answered."""
        super().on_response_complete()
        self._look_at_deadline()

    def connection_lost(self, exc: Exception | None) -> None:
        """Take note that it is over."""
        self.open_connections.forget(self)
        self._cancel_deadline()
        super().connection_lost(exc)

    def _look_at_deadline(self) -> None:
        """A deadline goes on while a head is awaited, or the rest of a body that nobody reads any more."""
        if self.conn.their_state is not h11.IDLE and not self.is_idle:
            self._cancel_deadline()
        elif self._deadline is None and not self.transport.is_closing():
            self._deadline = self.loop.call_later(self.open_connections.head_seconds, self.open_connections.drop, self)

    def _cancel_deadline(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None
