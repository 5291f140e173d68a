"""What the engine sends of a container's output: https://docs.docker.com/engine/api, "stream format" of attach.

docker-py's own reader waits for the socket to be readable, and with TLS part of a message may have been read from it
already: such a line would come with the next one, or with the end.
"""

from __future__ import annotations

import socket
import struct
from collections.abc import Iterator
from typing import Final

_HEADER: Final = struct.Struct(">BxxxL")
_STDERR: Final = 2
_CHUNK_BYTES: Final = 64 * 1024


def frames(connection: socket.socket) -> Iterator[tuple[bytes | None, bytes | None]]:
    """Yield what stdout and what stderr say, as it comes, until either end closes. Raises ``OSError``."""
    while header := _exactly(connection, _HEADER.size):
        stream, remaining = _HEADER.unpack(header)
        while remaining:
            data = connection.recv(min(remaining, _CHUNK_BYTES))
            if not data:
                return
            remaining -= len(data)
            yield (None, data) if stream == _STDERR else (data, None)


def _exactly(connection: socket.socket, count: int) -> bytes:
    """Return ``count`` bytes, or none at the end."""
    found = b""
    while len(found) < count:
        data = connection.recv(count - len(found))
        if not data:
            return b""
        found += data
    return found
