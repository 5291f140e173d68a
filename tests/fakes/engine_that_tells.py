"""What an engine, or what stands before it, may answer to one who listens: by HTTP, with scripted answers."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlsplit

CONTAINER_ID = "c0ffee" * 10 + "0000"


def event(action: str, **attributes: str) -> dict[str, Any]:
    return {"Action": action, "Actor": {"ID": CONTAINER_ID, "Attributes": attributes}}


@dataclass(frozen=True, kw_only=True)
class Answer:
    """To one question for events: a refusal, or events and whether the connection is cut after them."""

    status: int = 200
    events: tuple[dict[str, Any], ...] = ()
    silence_seconds: float = 0
    """How long nothing comes before the events."""
    is_cut: bool = False
    is_withheld: bool = False
    """Not so much as a header comes."""


@dataclass(kw_only=True)
class EngineThatTells:
    """The engine: how it answers, one question after another, and what it was asked."""

    answers: list[Answer]
    stop_signal: str | None = None
    finished_at: str = "2020-01-02T03:04:05.678901234Z"
    url: str = ""
    asked: list[dict[str, list[str]]] = field(default_factory=list)
    is_over: threading.Event = field(default_factory=threading.Event)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    engine: EngineThatTells

    def do_GET(self) -> None:
        parts = urlsplit(self.path)
        if parts.path.endswith("/events"):
            self.engine.asked.append(parse_qs(parts.query))
            self._tell(self.engine.answers.pop(0))
        elif parts.path.endswith("/version"):
            self._say({"ApiVersion": "1.41"})
        else:
            state = {"FinishedAt": self.engine.finished_at}
            config = {} if self.engine.stop_signal is None else {"StopSignal": self.engine.stop_signal}
            self._say({"Id": CONTAINER_ID, "Config": config, "State": state})

    def log_message(self, format: str, *arguments: object) -> None:  # noqa: A002 - as its base has it
        pass

    def _tell(self, answer: Answer) -> None:
        self.close_connection = True
        if answer.is_withheld:
            self.engine.is_over.wait()
            return
        if answer.status != 200:
            self._say({"message": "this path is not allowed"}, status=answer.status)
            return
        self.send_response(200)
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        self.engine.is_over.wait(answer.silence_seconds)
        for each in answer.events:
            line = json.dumps(each).encode() + b"\n"
            self.wfile.write(b"%x\r\n%s\r\n" % (len(line), line))
        if not answer.is_cut:
            self.engine.is_over.wait()

    def _say(self, said: object, *, status: int = 200) -> None:
        body = json.dumps(said).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


@contextmanager
def engine_that_tells(engine: EngineThatTells) -> Iterator[EngineThatTells]:
    """Let it answer on a port of the loopback interface."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"engine": engine}))
    server.daemon_threads = True
    engine.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    try:
        yield engine
    finally:
        engine.is_over.set()
        server.shutdown()
        thread.join()
        server.server_close()
