"""Peers that stop in the middle of something, over TLS and without, and streams that are left inside a PDU."""

from __future__ import annotations

import os
import socket
import ssl
import struct
import subprocess
import threading
import time
from datetime import UTC, datetime

import pytest

from dicom_gateway import serving
from dicom_gateway.entity import make_entity
from dicom_gateway.fast_store import Ending, FastStore, Patience
from dicom_gateway.serving import Serving
from dicom_gateway.spool import Spool
from dicom_gateway.takeover import HeldSocket
from tests.benchmarks import raw_sender
from tests.fakes.instances import ct
from tests.fakes.pipelining_scu import prepared
from tests.services import wait_until

LIMIT_SECONDS = 1
P_DATA, RELEASE_RQ = 0x04, struct.pack(">BBII", 5, 0, 4, 0)
VERIFICATION = b"1.2.840.10008.1.1\0"


class Receptions:
    def __init__(self, root):
        self.spool = Spool(root)
        self.ends = []

    def open(self, *, sender, called_ae_title):
        return self.spool.open(sender=sender, called_ae_title=called_ae_title, received_at=datetime.now(UTC))

    def ended(self, _reception_id, *, complete):
        self.ends.append(complete)


class Port:
    """A port whose connections are served in this process."""

    def __init__(self, root, *, tls):
        entity = make_entity("STORESCP")
        entity.network_timeout = LIMIT_SECONDS
        self.receptions = Receptions(root)
        self.open = 0
        self._serving = Serving(entity, self.receptions, tls=tls)
        self._is_secure = tls is not None
        self._listening = socket.create_server(("127.0.0.1", 0))
        self.number = self._listening.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self):
        while True:
            try:
                connection, _ = self._listening.accept()
            except OSError:
                return
            self.open += 1
            self._serving.serve(connection, is_secure=self._is_secure, on_end=self._ended)

    def _ended(self):
        self.open -= 1

    def close(self):
        self._listening.close()
        self._serving.stop(grace_seconds=0)


@pytest.fixture(scope="module")
def server_tls(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pki")
    names = ["-keyout", folder / "key.pem", "-out", folder / "certificate.pem", "-subj", "/CN=server"]
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", *names], check=True, capture_output=True
    )
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(folder / "certificate.pem", folder / "key.pem")
    return context


@pytest.fixture
def make_port(tmp_path, monkeypatch, server_tls):
    monkeypatch.setattr(serving, "NEGOTIATION_SECONDS", LIMIT_SECONDS)
    patience = Patience(between_messages_seconds=LIMIT_SECONDS, within_message_seconds=LIMIT_SECONDS)
    monkeypatch.setattr(serving, "_PATIENCE", patience)
    made = []

    def make(*, is_secure=False):
        made.append(Port(tmp_path, tls=server_tls if is_secure else None))
        return made[-1]

    yield make
    for port in made:
        port.close()


def connected(port, *, is_secure):
    plain = socket.create_connection(("127.0.0.1", port.number))
    plain.settimeout(20)
    if not is_secure:
        return plain
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    return context.wrap_socket(plain)


def pdu(*pdvs):
    content = b"".join(pdvs)
    return struct.pack(">BBI", P_DATA, 0, len(content)) + content


def pdv(content, *, control):
    return struct.pack(">IBB", len(content) + 2, 1, control) + content


def echo(message_id, *, data_set_type=0x0101):
    elements = [(0x0002, VERIFICATION)]
    for number, value in ((0x0100, 0x0030), (0x0110, message_id), (0x0800, data_set_type)):
        elements.append((number, struct.pack("<H", value)))
    command = b"".join(struct.pack("<HHI", 0, number, len(value)) + value for number, value in elements)
    return pdv(struct.pack("<HHII", 0, 0, 4, len(command)) + command, control=3)


STUDY = prepared(*(ct(PixelData=os.urandom(2000)) for _ in range(2)))
STOPS = {
    "before the request is whole": None,
    "between messages": b"",
    "inside a message": raw_sender.encode(STUDY, 16_000)[0][:-10],
    "inside the header of a PDU": raw_sender.encode(STUDY, 16_000)[0] + b"\4\0\0",
    "before the data set of another service": pdu(echo(1, data_set_type=0)),
}


@pytest.mark.parametrize("is_secure", [False, True], ids=["plain", "TLS"])
@pytest.mark.parametrize("sent", STOPS.values(), ids=STOPS)
def test_who_falls_silent_is_given_up_after_its_time(make_port, sent, is_secure):
    port = make_port(is_secure=is_secure)
    connection = connected(port, is_secure=is_secure)
    if sent is None:
        connection.sendall(b"\1\0\0")
    else:
        connection.sendall(raw_sender._associate_request(STUDY, "STORESCP", 1))
        assert connection.recv(10_000)[0] == 2
        connection.sendall(sent)
    wait_until(lambda: port.open == 1, seconds=10, what="the connection is served")
    began = time.process_time()
    wait_until(lambda: port.open == 0, seconds=10 * LIMIT_SECONDS, what="the connection is given up")
    assert time.process_time() - began < 0.5, "waiting costs next to nothing"
    connection.close()


def test_what_follows_in_a_stream_that_was_left_in_the_middle_is_no_release(make_port, monkeypatch):
    served = FastStore.serve

    def leave_in_the_middle(path, received):
        served(path, received)
        return Ending.CLOSED, b""

    monkeypatch.setattr(FastStore, "serve", leave_in_the_middle)
    port = make_port()
    opened = raw_sender.Association(STUDY, port=port.number, called_ae_title="STORESCP")
    opened.send(raw_sender.encode(STUDY, opened.fragment_bytes))
    # Of another service, so that the path is left; and what a data set may hold as well.
    opened._connection.sendall(pdu(echo(9)) + RELEASE_RQ)
    wait_until(lambda: port.open == 0, seconds=10, what="the connection is over")
    assert port.receptions.ends == [False]
    opened.close()


def test_what_comes_with_an_echo_is_not_read_by_pynetdicom(make_port, monkeypatch):
    taken = []
    let_read = HeldSocket.let_read

    def note(held, received=b""):
        if not received and not held.assoc.dimse.msg_queue.empty():
            taken.append("a PDU more than it was to read")
        let_read(held, received)

    monkeypatch.setattr(HeldSocket, "let_read", note)
    port = make_port()
    for _ in range(10):
        opened = raw_sender.Association(STUDY, port=port.number, called_ae_title="STORESCP")
        opened._connection.settimeout(10)
        first, second = (raw_sender.encode(STUDY, opened.fragment_bytes)[place] for place in (0, 1))
        opened._connection.sendall(pdu(echo(9)) + first)
        assert [opened._read_answer()[1] for _ in range(2)] == [0, 0]
        opened._connection.sendall(pdu(echo(10)) + second)
        assert [opened._read_answer()[1] for _ in range(2)] == [0, 0]
        opened.release()
    assert taken == []
