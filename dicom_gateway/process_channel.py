"""What the gateway and its receiving processes tell each other: one message a packet, connections travel with theirs.

A SOCK_SEQPACKET socket keeps messages whole, hands over descriptors, and ends when either side is gone: that is how
each notices, with no timer, that the other was killed.
"""

from __future__ import annotations

import json
import socket
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Final

_LARGEST_MESSAGE_BYTES: Final = 192 * 1024
_DESCRIPTORS: Final = 1


@dataclass(frozen=True, kw_only=True)
class Message:
    """``kind`` says what it is about, ``values`` the rest; a connection may come with it."""

    kind: str
    values: dict[str, Any]
    descriptor: int | None = None


class ProcessChannel:
    """One end. Several threads may send, one receives."""

    def __init__(self, end: socket.socket) -> None:
        self._end = end

    def send(self, kind: str, *, descriptor: int | None = None, **values: object) -> bool:
        """Send a message; return whether the other side is still there. Waits while it does not read."""
        packet = json.dumps({"kind": kind, **values}).encode()
        try:
            if descriptor is None:
                self._end.send(packet)
            else:
                socket.send_fds(self._end, [packet], [descriptor])
        except OSError:
            return False
        return True

    def receive(self) -> Message | None:
        """Return the next message, None once the other side is gone. Its connection is ours to close."""
        try:
            packet, descriptors, _, _ = socket.recv_fds(self._end, _LARGEST_MESSAGE_BYTES, _DESCRIPTORS)
        except OSError:
            return None
        if not packet:
            return None
        values = json.loads(packet)
        return Message(kind=values.pop("kind"), values=values, descriptor=descriptors[0] if descriptors else None)

    def close(self) -> None:
        """End it, for both sides."""
        with suppress(OSError):
            self._end.shutdown(socket.SHUT_RDWR)
        self._end.close()
