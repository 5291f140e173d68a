"""What a supervisor, a load balancer and Prometheus ask a gateway: ``/healthz``, ``/readyz``, ``/metrics``."""

from __future__ import annotations

import socket
from collections.abc import Callable
from typing import Final

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4
from prometheus_client.registry import Collector
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route

from dicom_gateway.errors import StartError
from dicom_gateway.http_connections import OpenConnections
from dicom_gateway.http_server import HttpServer
from dicom_gateway.listening import listen
from dicom_gateway.peers import AssociationLimits

_LIMITS: Final = AssociationLimits(in_all=64, of_one_peer=32)


class SeeingDoor:
    """A web server beside the gateway. ``start`` and ``stop`` are called once each."""

    def __init__(
        self, *, hostname: str, port: int, reasons_against: Callable[[], tuple[str, ...]], metrics: Collector
    ) -> None:
        self._hostname = hostname
        self._port = port
        self._listening: socket.socket | None = None
        application = seeing_application(reasons_against=reasons_against, metrics=metrics)
        self._server = HttpServer(application, name="metrics", connections=OpenConnections(_LIMITS))

    @property
    def port(self) -> int:
        """The port that is listened on. Only after ``start``."""
        if self._listening is None:
            raise StartError("the metrics are not served yet")
        return int(self._listening.getsockname()[1])

    def start(self) -> None:
        """Begin to answer. Raises ``StartError``."""
        self._listening = listen(
            self._hostname, self._port, hostname_setting="METRICS_HOSTNAME", port_setting="METRICS_PORT"
        )
        self._server.start(self._listening)

    def stop(self) -> None:
        """Answer no more."""
        self._server.stop(grace_seconds=0)
        if self._listening is not None:
            self._listening.close()


def seeing_application(*, reasons_against: Callable[[], tuple[str, ...]], metrics: Collector) -> Starlette:
    """Return the three pages. What disk and ledger are asked is asked in threads: ``/healthz`` waits for neither."""
    registry = CollectorRegistry(auto_describe=False)
    registry.register(metrics)

    async def healthz(_request: Request) -> Response:
        return PlainTextResponse("alive\n")

    def readyz(_request: Request) -> Response:
        reasons = reasons_against()
        return PlainTextResponse("\n".join((*reasons, "")) if reasons else "ready\n", 503 if reasons else 200)

    def metrics_page(_request: Request) -> Response:
        return Response(generate_latest(registry), media_type=CONTENT_TYPE_PLAIN_0_0_4)

    return Starlette(
        routes=[Route("/healthz", healthz), Route("/readyz", readyz), Route("/metrics", metrics_page)],
    )
