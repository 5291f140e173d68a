from __future__ import annotations

import asyncio
import contextlib
import socket
import threading
import time

import httpx
import pytest
from starlette.applications import Starlette
from starlette.responses import PlainTextResponse
from starlette.routing import Route

from dicom_gateway.http_connections import OpenConnections
from dicom_gateway.http_server import HttpServer
from dicom_gateway.peers import AssociationLimits
from tests.services import wait_until

HEAD = b"GET / HTTP/1.1\r\nHost: x\r\n"


class Site:
    """A server whose requests wait where they are told to, and what it refused."""

    def __init__(self, *, in_all=8, of_one_peer=8, head_seconds=60.0):
        self.refused, self.served = [], 0
        self.listening = socket.create_server(("127.0.0.1", 0), backlog=512)
        self.port = self.listening.getsockname()[1]
        application = Starlette(routes=[Route("/", self._answer, methods=["GET", "POST"]), Route("/wait", self._wait)])
        self.server = HttpServer(
            application,
            name="test",
            connections=OpenConnections(
                AssociationLimits(in_all=in_all, of_one_peer=of_one_peer),
                refused=self.refused.append,
                head_seconds=head_seconds,
            ),
        )
        self.server.start(self.listening)

    async def _answer(self, request):
        return PlainTextResponse("here")

    async def _wait(self, request):
        self.served += 1
        await asyncio.sleep(60)

    def connect(self, said=b"", *, address="127.0.0.1"):
        connection = socket.create_connection(("127.0.0.1", self.port), source_address=(address, 0), timeout=10)
        connection.sendall(said)
        return connection

    def get(self, **arguments):
        return httpx.get(f"http://127.0.0.1:{self.port}/", timeout=10, **arguments)


@pytest.fixture
def make_site():
    sites = []

    def make(**options):
        sites.append(Site(**options))
        return sites[-1]

    yield make
    for site in sites:
        site.server.stop(grace_seconds=0)


@pytest.fixture
def opened():
    with contextlib.ExitStack() as stack:
        yield stack.enter_context


def until(connection, text):
    """Receive until ``text`` has come."""
    received = b""
    while text not in received:
        more = connection.recv(1000)
        assert more, received
        received += more


def is_over_while_it_sends(connection, piece):
    pause = threading.Event()
    with contextlib.suppress(OSError):
        for _ in range(200):
            connection.sendall(piece)
            pause.wait(0.05)
        return False
    return True


def is_over(connection):
    try:
        return connection.recv(1000) == b""
    except ConnectionResetError:
        return True


@pytest.mark.parametrize("said", [b"", b"G", HEAD, b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n"])
def test_a_head_that_does_not_come_in_time_is_not_waited_for(make_site, opened, said):
    site = make_site(head_seconds=0.3)
    began = time.monotonic()
    assert is_over(opened(site.connect(said)))
    assert time.monotonic() - began < 5
    wait_until(lambda: site.refused == ["no-request"], seconds=5, what="it is counted")


def test_a_head_that_trickles_is_not_waited_for(make_site, opened):
    site = make_site(head_seconds=0.5)
    connection = opened(site.connect())
    assert is_over_while_it_sends(connection, b"G")


def test_what_nobody_reads_is_not_waited_for(make_site, opened):
    site = make_site(head_seconds=0.5)
    connection = opened(site.connect(b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\n"))
    until(connection, b"here")
    assert is_over_while_it_sends(connection, b"x")
    assert site.refused == []


def test_one_more_request_on_a_connection_is_no_longer_waited_for(make_site, opened):
    site = make_site(head_seconds=0.5)
    connection = opened(site.connect(HEAD + b"\r\n"))
    until(connection, b"here")
    connection.sendall(HEAD)
    assert is_over(connection)


def test_a_request_that_is_served_has_the_time_that_it_takes(make_site, opened):
    site = make_site(head_seconds=0.2, in_all=1)
    connection = opened(site.connect(b"GET /wait HTTP/1.1\r\nHost: x\r\n\r\n"))
    wait_until(lambda: site.served == 1, seconds=5, what="it is served")
    connection.settimeout(0.6)
    with pytest.raises(TimeoutError):
        connection.recv(1)


def test_who_is_silent_has_to_go_for_one_more(make_site, opened):
    site = make_site(in_all=4, of_one_peer=4)
    silent = [opened(site.connect()) for _ in range(50)]
    assert site.get().text == "here"
    assert all(is_over(one) for one in silent[:46])
    assert not set(site.refused) - {"no-request"}


def test_who_is_served_does_not_go_for_anybody(make_site, opened):
    site = make_site(in_all=2, of_one_peer=2)
    served = [opened(site.connect(b"GET /wait HTTP/1.1\r\nHost: x\r\n\r\n")) for _ in range(2)]
    wait_until(lambda: site.served == 2, seconds=5, what="they are served")
    answer = opened(site.connect()).recv(1000)
    assert answer.startswith(b"HTTP/1.1 503 ")
    assert site.refused == ["busy"]
    served[0].close()
    wait_until(lambda: site.get().status_code == 200, seconds=5, what="there is room again")


def test_one_peer_does_not_take_the_places_of_all(make_site, opened):
    site = make_site(in_all=4, of_one_peer=2)
    for number in range(2):
        opened(site.connect(b"GET /wait HTTP/1.1\r\nHost: x\r\n\r\n", address="127.0.0.2"))
        wait_until(lambda number=number: site.served == number + 1, seconds=5, what="it is served")
    mine = opened(site.connect())
    assert opened(site.connect(address="127.0.0.2")).recv(1000).startswith(b"HTTP/1.1 503 ")
    assert site.get().text == "here"
    mine.sendall(HEAD + b"\r\n")
    until(mine, b"here")
