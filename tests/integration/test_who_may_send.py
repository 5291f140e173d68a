"""Who is let in, over what, and what the others are told: the gateway as a whole, with real peers."""

from __future__ import annotations

import os
import shutil
import socket
import ssl
import subprocess
import time

import pytest
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian
from pynetdicom import AE

from dicom_gateway.errors import StartError
from dicom_gateway.wiring import build_gateway
from flows_engine.handoff.site_settings import SiteSettings
from tests.fakes.definitions import FakeDefinitions, flow
from tests.fakes.instances import ct
from tests.fakes.run_trigger import FakeRunTrigger
from tests.fakes.store_scu import association, exchange, send, store_request


@pytest.fixture
def make_gateway(tmp_path):
    gateways = []

    def make(**settings):
        settings = {"data_dir": tmp_path / "data", "ae_port": 0, "receiver_processes": 1, **settings}
        gateway = build_gateway(
            SiteSettings(**settings), FakeRunTrigger(), FakeDefinitions(flow("CT", {"Modality": "CT"}))
        )
        gateways.append(gateway)
        gateway.start()
        return gateway

    yield make
    for gateway in gateways:
        gateway.stop(grace_seconds=0)


def wait_until(condition, *, seconds=15.0):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.01)


def answer(port, *, ae_title="CT1", called="STORESCP"):
    """Return what a peer is told: None where it is let in, else result, source and diagnostic of its rejection."""
    entity = AE(ae_title=ae_title)
    entity.add_requested_context(CTImageStorage, ExplicitVRLittleEndian)
    opened = entity.associate("127.0.0.1", port, ae_title=called)
    if opened.is_established:
        opened.release()
        return None
    assert opened.is_rejected
    told = opened.acceptor.primitive
    return told.result, told.result_source, told.diagnostic


def test_who_is_not_allowed_is_rejected_with_the_right_reason(make_gateway, caplog):
    gateway = make_gateway(allowed_peers=("CT*@127.0.0.0/8", "10.9.9.9"), require_called_ae=True)
    assert answer(gateway.port) is None
    assert answer(gateway.port, ae_title="MR1") == (1, 1, 3)
    assert answer(gateway.port, called="OTHER") == (1, 1, 7)
    wait_until(lambda: "REQUIRE_CALLED_AE" in caplog.text)
    assert "ALLOWED_PEERS" in caplog.text
    assert "everyone" not in caplog.text


def test_by_default_everyone_may_send_and_the_log_says_so(make_gateway, caplog):
    gateway = make_gateway()
    assert answer(gateway.port, ae_title="ANYONE", called="ANYTHING") is None
    assert "everyone who reaches the port may send" in caplog.text


def test_a_rule_that_is_none_keeps_the_gateway_from_starting(make_gateway):
    with pytest.raises(StartError, match=r"ALLOWED_PEERS: '10\.0\.0\.0/99' is no network"):
        make_gateway(allowed_peers=("CT1@10.0.0.0/99",))


def test_more_than_a_peer_may_have_are_rejected_until_one_ends(make_gateway):
    gateway = make_gateway(max_associations_per_peer=2)
    with association(gateway.port), association(gateway.port):
        assert answer(gateway.port) == (2, 3, 2)
    wait_until(lambda: gateway._receiver.open_connections == 0)
    assert answer(gateway.port) is None


def test_strangers_that_say_nothing_do_not_lock_out_others_for_ever(make_gateway):
    gateway = make_gateway(max_associations=2)
    silent = [socket.create_connection(("127.0.0.1", gateway.port)) for _ in range(2)]
    wait_until(lambda: gateway._receiver.open_connections == 2)
    assert answer(gateway.port) == (2, 3, 2)
    for connection in silent:
        connection.close()
    wait_until(lambda: gateway._receiver.open_connections == 0)
    assert answer(gateway.port) is None


def test_under_the_reserve_senders_are_told_to_wait_and_later_are_let_in(make_gateway, tmp_path):
    filler = tmp_path / "filler"
    free = shutil.disk_usage(tmp_path).free
    gateway = make_gateway(disk_reserve_bytes=free - 60 * 2**20)
    with association(gateway.port) as opened:
        assert send(opened, ct()) == 0x0000
        with filler.open("wb") as file:
            os.posix_fallocate(file.fileno(), 0, 120 * 2**20)
        assert send(opened, ct()) == 0xA700
        assert answer(gateway.port) == (2, 3, 1)
        filler.unlink()
        assert send(opened, ct()) == 0x0000
    assert answer(gateway.port) is None
    wait_until(lambda: [study.instance_count for study in gateway.ledger.studies()] == [2])


@pytest.fixture(scope="module")
def pki(tmp_path_factory):
    """Return a folder with an authority, and certificates of a server, a client and a stranger."""
    if shutil.which("openssl") is None:
        pytest.skip("openssl is not installed")
    folder = tmp_path_factory.mktemp("pki")

    def openssl(*arguments):
        subprocess.run(["openssl", *arguments], cwd=folder, check=True, capture_output=True)

    for authority in ("ca", "other"):
        openssl("req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", f"/CN={authority}",
                "-keyout", f"{authority}.key", "-out", f"{authority}.pem")  # fmt: skip
    for name, authority in (("server", "ca"), ("client", "ca"), ("stranger", "other")):
        openssl("req", "-newkey", "rsa:2048", "-nodes", "-subj", f"/CN={name}", "-keyout", f"{name}.key",
                "-out", f"{name}.csr")  # fmt: skip
        openssl("x509", "-req", "-in", f"{name}.csr", "-CA", f"{authority}.pem", "-CAkey", f"{authority}.key",
                "-CAcreateserial", "-days", "2", "-out", f"{name}.pem")  # fmt: skip
    return folder


def tls_settings(pki, **settings):
    return {"tls_cert": pki / "server.pem", "tls_key": pki / "server.key", "tls_ca": pki / "ca.pem", **settings}


def send_over_tls(port, pki, client):
    """Send one instance over TLS; return its status, None where there was no association."""
    context = ssl.create_default_context(cafile=pki / "ca.pem")
    context.check_hostname = False
    if client:
        context.load_cert_chain(pki / f"{client}.pem", pki / f"{client}.key")
    entity = AE(ae_title="CT1")
    entity.add_requested_context(CTImageStorage, ExplicitVRLittleEndian)
    opened = entity.associate("127.0.0.1", port, tls_args=(context, "server"))
    if not opened.is_established:
        return None
    status = send(opened, ct(PixelData=os.urandom(900_000)))
    opened.release()
    return status


def test_tls_lets_in_who_shows_a_certificate_of_the_authority(make_gateway, pki):
    gateway = make_gateway(**tls_settings(pki))
    assert send_over_tls(gateway.port, pki, "client") == 0x0000
    assert send_over_tls(gateway.port, pki, "stranger") is None
    assert send_over_tls(gateway.port, pki, None) is None
    wait_until(lambda: [study.outcome for study in gateway.ledger.studies()] == ["triggered"])


def test_over_tls_too_a_sender_may_send_on_before_it_is_answered(make_gateway, pki):
    gateway = make_gateway(**tls_settings(pki, tls_client_certificate="none"))
    context = ssl.create_default_context(cafile=pki / "ca.pem")
    context.check_hostname = False
    requests = [
        store_request(ct(PixelData=os.urandom(size)), size) for size in (*range(32, 48), *range(40_000, 40_016))
    ]
    with association(gateway.port, window=(0, 0), tls=context) as opened:
        assert opened.acceptor.asynchronous_operations == (16, 1)
        assert exchange(opened, requests) == [(request.MessageID, 0x0000) for request in requests]
    wait_until(lambda: [study.instance_count for study in gateway.ledger.studies()] == [32])


def test_a_plain_port_and_a_tls_port_may_both_be_open(make_gateway, pki):
    gateway = make_gateway(**tls_settings(pki, tls_port=0, tls_client_certificate="none"))
    assert send_over_tls(gateway.tls_port, pki, None) == 0x0000
    assert answer(gateway.port) is None


def test_who_says_nothing_or_nonsense_instead_of_a_handshake_harms_nobody(make_gateway, pki):
    gateway = make_gateway(**tls_settings(pki))
    with (
        socket.create_connection(("127.0.0.1", gateway.port)),
        socket.create_connection(("127.0.0.1", gateway.port)) as nonsense,
    ):
        nonsense.sendall(b"GET / HTTP/1.0\r\n\r\n")
        assert send_over_tls(gateway.port, pki, "client") == 0x0000


@pytest.mark.dcmtk
def test_dcmtk_sends_over_tls(make_gateway, pki):
    if shutil.which("echoscu") is None:
        if os.environ.get("CI"):
            pytest.fail("echoscu of DCMTK is not installed")
        pytest.skip("echoscu of DCMTK is not installed")
    gateway = make_gateway(**tls_settings(pki))
    command = ["echoscu", "+tls", pki / "client.key", pki / "client.pem", "+cf", pki / "ca.pem"]
    sent = subprocess.run(
        [*map(str, command), "127.0.0.1", str(gateway.port)],
        env={**os.environ, "TCP_NODELAY": "1"}, capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert sent.returncode == 0, sent.stderr


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"tls_cert": "gone.pem"}, "TLS_CERT: .*gone.pem cannot be read"),
        ({"tls_key": "client.key"}, "TLS_KEY: .*are no certificate and its key"),
        ({"tls_ca": "server.key"}, "TLS_CA: .*holds no certificates"),
        ({"tls_ca": None}, "TLS_CA: without it no certificate"),
        ({"tls_key": None}, "TLS_CERT and TLS_KEY belong together"),
        ({"tls_key": None, "tls_cert": None, "tls_port": 0}, "TLS_PORT: TLS needs a certificate"),
    ],
)
def test_what_is_wrong_with_tls_is_told_at_the_start(make_gateway, pki, change, message):
    change = {name: pki / value if isinstance(value, str) else value for name, value in change.items()}
    with pytest.raises(StartError, match=message):
        make_gateway(**{**tls_settings(pki), **change})
