from __future__ import annotations

import socket
from contextlib import suppress
from datetime import UTC, datetime

import httpx
import pytest

from dicom_gateway.http_connections import OpenConnections
from dicom_gateway.http_server import HttpServer
from dicom_gateway.listening import listen
from dicom_gateway.peers import AssociationLimits, PeerRules, parse_peer_rule
from dicom_gateway.spool import Spool
from dicom_gateway.stow_application import StowDoor
from dicom_gateway.stow_credentials import StowCredentials
from dicom_gateway.tally import Tally
from tests.fakes.instances import ct
from tests.fakes.stow_client import TOKEN, TYPE, body, dicom_file, post
from tests.services import wait_until

LIMITS = AssociationLimits(in_all=16, of_one_peer=16)


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
    def __init__(self, root, *, silence_seconds=20.0, allowed=()):
        self.receptions, self.tally = Receptions(root), Tally()
        door = StowDoor(
            receptions=self.receptions,
            spool=root,
            ae_title="STORESCP",
            credentials=StowCredentials(token=TOKEN),
            tally=self.tally,
            peers=PeerRules(allowed=tuple(map(parse_peer_rule, allowed))),
            silence_seconds=silence_seconds,
        )
        self.listening = listen("localhost", 0, hostname_setting="STOW_HOSTNAME", port_setting="STOW_PORT")
        self.port = self.listening.getsockname()[1]
        self.server = HttpServer(door.application(), name="stow", connections=OpenConnections(LIMITS))
        self.server.start(self.listening)


@pytest.fixture
def make_served(tmp_path):
    made = []

    def make(**options):
        made.append(Served(tmp_path, **options))
        return made[-1]

    yield make
    for served in made:
        served.server.stop(grace_seconds=0)
        served.listening.close()


@pytest.fixture
def served(make_served, request):
    return make_served(silence_seconds=getattr(request, "param", 20.0))


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


@pytest.mark.parametrize("served", [0.4], indirect=True)
def test_a_sender_that_trickles_is_told_as_well(served):
    whole = body([dicom_file(ct())])
    with socket.create_connection(("127.0.0.1", served.port), timeout=0.05) as connection:
        connection.sendall(begun(b"", length=len(whole)))
        for at in range(len(whole)):
            connection.sendall(whole[at : at + 1])
            with suppress(TimeoutError):
                assert connection.recv(1000).startswith(b"HTTP/1.1 408 ")
                assert at > 4
                return
    pytest.fail("it was waited for")


def test_whoever_sends_from_an_address_that_no_rule_names_is_refused_before_all_else(make_served):
    served = make_served(allowed=["CT1", "PACS@10.1.3.4", "10.2.0.0/16"])
    answer = post(served.port, body([dicom_file(ct())]), X_Forwarded_For="10.1.3.4", Forwarded="for=10.1.3.4")
    assert (answer.status_code, answer.text) == (403, "its address is not among those of ALLOWED_PEERS\n")
    assert post(served.port, b"", authorization=None).status_code == 403
    assert served.tally.counts().refused == {"peer": 2}


@pytest.mark.parametrize("allowed", [["127.0.0.0/8"], ["PACS@127.0.0.1"], ["CT1", "MR*"], []])
def test_who_has_the_token_sends_from_wherever_a_rule_says_or_none_says_anything(make_served, allowed):
    served = make_served(allowed=allowed)
    assert post(served.port, body([dicom_file(ct())])).status_code == 200
    assert post(served.port, b"", authorization=None).status_code == 401


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
