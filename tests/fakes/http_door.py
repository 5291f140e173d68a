"""A proxy in front of a server that can be told to refuse service, or to lose answers on their way back."""

from __future__ import annotations

import contextlib
import socket
import threading
from http import HTTPStatus
from http.client import HTTPConnection, HTTPException
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Self

import httpx

_PER_CONNECTION = {"connection", "keep-alive", "transfer-encoding", "content-length"}


class HttpDoor:
    """``url`` leads through it to the server of the ``url`` that it was given."""

    def __init__(self, url: str) -> None:
        target = httpx.URL(url)
        self.refusing = False
        """While true, every request is answered 503, and none reaches the server."""
        self.losing = ""
        """A part of a path. An answer to what goes there is lost once it is known, and the connection with it."""
        self.lost = 0
        """How many answers were lost."""
        self.refused = 0
        """How many requests were answered 503."""
        self._lock = threading.Lock()
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(self, target.host, target.port or 80))
        self._server.daemon_threads = True
        self.url = str(target.copy_with(port=self._server.server_port))

    def __enter__(self) -> Self:
        threading.Thread(target=self._server.serve_forever, name="http-door", daemon=True).start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.shutdown()
        self._server.server_close()

    def refuse(self) -> bool:
        with self._lock:
            self.refused += self.refusing
            return self.refusing

    def lose(self, path: str) -> bool:
        with self._lock:
            loses = bool(self.losing) and self.losing in path
            self.lost += loses
            return loses


def _handler(door: HttpDoor, host: str, port: int) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        disable_nagle_algorithm = True

        def _hand_on(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            if door.refuse():
                self._answer(HTTPStatus.SERVICE_UNAVAILABLE, {}, b"{}")
                return
            kept = {name: value for name, value in self.headers.items() if name.lower() not in _PER_CONNECTION}
            server = HTTPConnection(host, port, timeout=60)
            try:
                server.request(self.command, self.path, body, kept)
                response = server.getresponse()
                content = response.read()
            except (OSError, HTTPException):
                self._break()
                return
            finally:
                server.close()
            if door.lose(self.path):
                self._break()
                return
            self._answer(response.status, dict(response.getheaders()), content)

        do_GET = do_POST = do_PATCH = do_DELETE = _hand_on  # noqa: N815  # the names that http.server looks for

        def _answer(self, status: int, headers: dict[str, str], content: bytes) -> None:
            self.send_response_only(status)
            for name, value in headers.items():
                if name.lower() not in _PER_CONNECTION:
                    self.send_header(name, value)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def _break(self) -> None:
            self.close_connection = True
            with contextlib.suppress(OSError):
                self.connection.shutdown(socket.SHUT_RDWR)

    return Handler
