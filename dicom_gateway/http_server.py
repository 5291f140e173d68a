"""Serves an application over HTTP, in a thread. The web server's settings are all here."""

from __future__ import annotations

import socket
import threading
import time
from typing import Final

import uvicorn
from starlette.applications import Starlette

from dicom_gateway.errors import StartError
from dicom_gateway.http_connections import OpenConnections, protocol_for

_START_SECONDS: Final = 20.0
_LOOK_SECONDS: Final = 0.01


class HttpServer:
    """A server that can be started and stopped once each. It has the listening socket to itself from then on."""

    def __init__(self, application: Starlette, *, name: str, connections: OpenConnections) -> None:
        self._name = name
        self._server = uvicorn.Server(
            uvicorn.Config(
                application,
                loop="asyncio",
                http=protocol_for(connections),
                ws="none",
                lifespan="off",
                # What a peer asks for is its own text, and may name a patient: nothing of it is logged.
                log_config=None,
                log_level="warning",
                access_log=False,
                server_header=False,
                proxy_headers=False,
            )
        )
        self._thread: threading.Thread | None = None

    @property
    def is_alive(self) -> bool:
        """Whether it serves."""
        return self._thread is not None and self._thread.is_alive()

    def start(self, listening: socket.socket) -> None:
        """Begin to serve. Raises ``StartError``."""
        self._thread = threading.Thread(
            target=self._server.run, kwargs={"sockets": [listening]}, name=self._name, daemon=True
        )
        self._thread.start()
        deadline = time.monotonic() + _START_SECONDS
        while not self._server.started:
            if not self._thread.is_alive() or time.monotonic() > deadline:
                raise StartError(f"the web server for {self._name} did not start; what it said is above")
            time.sleep(_LOOK_SECONDS)

    def stop(self, *, grace_seconds: float) -> None:
        """Take no more requests, let open ones go on for ``grace_seconds``, then end them."""
        if self._thread is None:
            return
        self._server.config.timeout_graceful_shutdown = max(1, round(grace_seconds))
        self._server.should_exit = True
        self._thread.join(timeout=grace_seconds + _START_SECONDS)
