from __future__ import annotations

import socket
from datetime import UTC, datetime

import httpx
import pytest

from dicom_gateway.http_server import HttpServer
from dicom_gateway.listening import listen
from dicom_gateway.spool import Spool
from dicom_gateway.stow_application import StowDoor
from dicom_gateway.stow_credentials import StowCredentials
from dicom_gateway.tally import Tally
from tests.fakes.instances import ct
from tests.fakes.stow_client import TOKEN, TYPE, body, dicom_file, post
from tests.services import wait_until


class Receptions:
    """Receptions in a spool, and which of them have ended."""

    def __init__(self, root):
        self.spool, self.ended_ones, self.senders = Spool(root), [], []

    def open(self, *, sender, called_ae_title):
        self.senders.append((sender.ae_title, sender.host, called_ae_title))
        return self.spool.open(sender=sender, called_ae_title=called_ae_title, received_at=datetime.now(UTC))

    def ended(self, reception_id, *, complete):
        self.ended_ones.append(complete)


class Served:
    def __init__(self, root, *, silence_seconds):
        self.receptions, self.tally = Receptions(root), Tally()
        door = StowDoor(
            receptions=self.receptions,
            spool=root,
            ae_title="STORESCP",
            credentials=StowCredentials(token=TOKEN),
            tally=self.tally,
            silence_seconds=silence_seconds,
        )
        self.listening = listen("localhost", 0, hostname_setting="STOW_HOSTNAME", port_setting="STOW_PORT")
        self.port = self.listening.getsockname()[1]
        self.server = HttpServer(door.application(), name="stow", most_connections=16)
        self.server.start(self.listening)


@pytest.fixture
def served(tmp_path, request):
    served = Served(tmp_path, silence_seconds=getattr(request, "param", 20.0))
    yield served
    served.server.stop(grace_seconds=0)
    served.listening.close()


def begun(content, *, length):
    head = f"POST /studies HTTP/1.1\r\nHost: x\r\nContent-Type: {TYPE}\r\nAuthorization: Bearer {TOKEN}\r\n"
    return f"{head}Content-Length: {length}\r\n\r\n".encode() + content


def test_a_request_is_one_reception_that_was_released(served):
    assert post(served.port, body([dicom_file(ct()), dicom_file(ct())])).status_code == 200
    assert served.receptions.senders == [("STOW", "127.0.0.1", "STORESCP")]
    assert served.receptions.ended_ones == [True]


def test_a_request_without_an_instance_opens_none(served):
    assert post(served.port, body([b"x"])).status_code == 409
    assert served.receptions.ended_ones == []


@pytest.mark.parametrize("served", [0.2], indirect=True)
def test_a_sender_that_falls_silent_is_told_and_what_was_whole_is_not_released(served):
    whole = body([dicom_file(ct()), dicom_file(ct())])
    with socket.create_connection(("127.0.0.1", served.port), timeout=10) as connection:
        connection.sendall(begun(whole[:-60], length=len(whole)))
        assert connection.recv(1000).startswith(b"HTTP/1.1 408 ")
    wait_until(lambda: served.receptions.ended_ones == [False], seconds=10, what="the reception has ended")


@pytest.mark.parametrize("nonsense", [b"\x16\x03\x01\x02\x00\x01", b"GET\r\n\r\n", b"POST /studies HTTP/9\r\n" * 9000])
def test_what_is_no_http_harms_nobody(served, nonsense):
    with socket.create_connection(("127.0.0.1", served.port), timeout=10) as connection:
        try:
            connection.sendall(nonsense + b"\r\n\r\n")
            connection.recv(1000)
        except ConnectionError:
            pass
    assert post(served.port, body([dicom_file(ct())])).status_code == 200


def test_a_length_that_nobody_could_keep_is_refused_before_the_body(served):
    with socket.create_connection(("127.0.0.1", served.port), timeout=10) as connection:
        connection.sendall(begun(b"", length=10**30))
        assert connection.recv(1000)[:13] in (b"HTTP/1.1 507 ", b"HTTP/1.1 400 ")


def test_several_bodies_come_at_the_same_time(served):
    first, second = body([dicom_file(ct())]), body([dicom_file(ct())])
    with socket.create_connection(("127.0.0.1", served.port), timeout=10) as connection:
        connection.sendall(begun(first[:-60], length=len(first)))
        assert post(served.port, second).status_code == 200
        connection.sendall(first[-60:])
        assert connection.recv(1000).startswith(b"HTTP/1.1 200 ")


def test_nothing_can_be_fetched(served):
    assert httpx.get(f"http://127.0.0.1:{served.port}/studies", timeout=10).status_code == 405
