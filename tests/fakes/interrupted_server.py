"""A way to a Prefect server that answers 503 after a number of requests: a server that goes away in mid-work."""

from __future__ import annotations

import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Self

import httpx

_NOT_HANDED_ON = {"connection", "content-encoding", "content-length", "transfer-encoding", "date", "server"}


class InterruptedServer:
    """Hands requests on to the API at ``url``; its own ``url`` leads through it.

    After ``requests_left`` more of them (None: never) it answers 503, which the API does not hear of.
    """

    def __init__(self, url: str) -> None:
        target = httpx.URL(url)
        self.requests_left: int | None = None
        self._lock = threading.Lock()
        self._client = httpx.Client(base_url=target.copy_with(path="/"), timeout=60)
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self._server.daemon_threads = True
        self.url = str(target.copy_with(port=self._server.server_address[1]))

    def __enter__(self) -> Self:
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._client.close()

    def _lets_through(self) -> bool:
        with self._lock:
            if self.requests_left is None:
                return True
            self.requests_left -= 1
            return self.requests_left >= 0

    def _refuses(self, _agent: str, _path: str) -> bool:
        """Tell whether this one request is answered 503; for servers that are choosy."""
        return False

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        front = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def _answer(self) -> None:
                body = self.rfile.read(int(self.headers.get("content-length", 0)))
                if front._refuses(self.headers.get("user-agent", ""), self.path) or not front._lets_through():
                    self._send(503, b"", {})
                    return
                headers = {name: value for name, value in self.headers.items() if name.lower() != "host"}
                answer = front._client.request(self.command, self.path, content=body, headers=headers)
                kept = {name: value for name, value in answer.headers.items() if name not in _NOT_HANDED_ON}
                self._send(answer.status_code, answer.content, kept)

            def _send(self, status: int, content: bytes, headers: dict[str, str]) -> None:
                self.send_response(status)
                for name, value in headers.items():
                    self.send_header(name, value)
                if status != 204:
                    self.send_header("content-length", str(len(content)))
                self.end_headers()
                if status != 204:
                    self.wfile.write(content)

            def log_message(self, format: str, *args: object) -> None:  # noqa: A002
                """Say nothing."""

            do_GET = do_POST = do_PATCH = do_DELETE = _answer  # noqa: N815

        return Handler
