"""A way to a server that can be shut and opened: the server goes away and comes back, without a restart of it."""

from __future__ import annotations

import contextlib
import selectors
import socket
import threading
from types import TracebackType
from typing import Self

import httpx

from tests.services import unused_port


class TcpDoor:
    """Hands connections on to the server of ``url`` while it is open. ``url`` of the door leads through it.

    It is shut at first; shutting it breaks what goes through it.
    """

    def __init__(self, url: str) -> None:
        target = httpx.URL(url)
        self._target = (target.host, target.port or 80)
        self._port = unused_port()
        self.url = str(target.copy_with(port=self._port))
        self._listener: socket.socket | None = None
        self._open: set[socket.socket] = set()
        self._threads: list[threading.Thread] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.shut()

    def open(self) -> None:
        """Let connections through."""
        self._listener = socket.create_server(("127.0.0.1", self._port))
        self._start(self._accept, self._listener)

    def shut(self) -> None:
        """Refuse connections, and break those that are there."""
        if self._listener is not None:
            _break(self._listener)
            self._listener = None
        for connection in list(self._open):
            _break(connection)
        for thread in self._threads:
            thread.join()
        self._threads.clear()

    def _start(self, work, *arguments: socket.socket) -> None:
        thread = threading.Thread(target=work, args=arguments, daemon=True)
        self._threads.append(thread)
        thread.start()

    def _accept(self, listener: socket.socket) -> None:
        with listener, contextlib.suppress(OSError):
            while True:
                connection, _ = listener.accept()
                self._start(self._hand_on, connection)

    def _hand_on(self, connection: socket.socket) -> None:
        with connection, socket.create_connection(self._target) as server, selectors.DefaultSelector() as selector:
            ends = {connection, server}
            self._open |= ends
            selector.register(connection, selectors.EVENT_READ, server)
            selector.register(server, selectors.EVENT_READ, connection)
            with contextlib.suppress(OSError):
                while True:
                    for key, _ in selector.select():
                        assert isinstance(key.fileobj, socket.socket)
                        data = key.fileobj.recv(65536)
                        if not data:
                            self._open -= ends
                            return
                        key.data.sendall(data)
            self._open -= ends


def _break(connection: socket.socket) -> None:
    with contextlib.suppress(OSError):
        connection.shutdown(socket.SHUT_RDWR)
