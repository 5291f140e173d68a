"""A way to a Docker engine on which connections that carry its events can be cut, and no others."""

from __future__ import annotations

import contextlib
import socket
import threading
from pathlib import Path
from types import TracebackType
from typing import Self


class EventsRelay:
    """Hands connections on from a socket of its own in ``folder`` to the socket ``engine``."""

    def __init__(self, engine: Path, folder: Path) -> None:
        self._engine = str(engine)
        self._path = str(folder / "relay.sock")
        self._listener = socket.socket(socket.AF_UNIX)
        self._with_events: list[socket.socket] = []
        self._open: list[socket.socket] = []

    @property
    def url(self) -> str:
        return f"unix://{self._path}"

    def __enter__(self) -> Self:
        self._listener.bind(self._path)
        self._listener.listen(16)
        threading.Thread(target=self._accept, daemon=True).start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for connection in (self._listener, *self._open):
            _break(connection)

    def cut(self) -> int:
        """Break the connections that carry events; return how many there were."""
        cut, self._with_events = self._with_events, []
        for connection in cut:
            _break(connection)
        return len(cut)

    def _accept(self) -> None:
        with self._listener, contextlib.suppress(OSError):
            while True:
                near, _ = self._listener.accept()
                far = socket.socket(socket.AF_UNIX)
                far.connect(self._engine)
                self._open += [near, far]
                threading.Thread(target=self._hand_on, args=(near, far, near), daemon=True).start()
                threading.Thread(target=self._hand_on, args=(far, near, None), daemon=True).start()

    def _hand_on(self, source: socket.socket, target: socket.socket, client: socket.socket | None) -> None:
        with source, contextlib.suppress(OSError):
            while data := source.recv(65536):
                if client is not None and b"/events?" in data:
                    self._with_events.append(client)
                target.sendall(data)
        with contextlib.suppress(OSError):
            target.shutdown(socket.SHUT_WR)


def _break(connection: socket.socket) -> None:
    with contextlib.suppress(OSError):
        connection.shutdown(socket.SHUT_RDWR)
