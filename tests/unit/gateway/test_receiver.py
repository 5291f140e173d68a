from __future__ import annotations

import logging
import socket
import time

import pytest
from pynetdicom import _config

from dicom_gateway.errors import StartError
from dicom_gateway.handlers import Handlers
from dicom_gateway.receiver import Receiver, configure_pynetdicom_logging


@pytest.fixture
def make_receiver():
    receivers = []

    def make(hostname="localhost", port=0):
        receiver = Receiver(Handlers(None), ae_title="STORESCP", hostname=hostname, port=port)
        receivers.append(receiver)
        return receiver

    yield make
    for receiver in receivers:
        receiver.stop(grace_seconds=0)


def test_localhost_listens_on_the_loopback_alone(make_receiver):
    receiver = make_receiver()
    receiver.start()
    assert receiver._server.socket.getsockname() == ("127.0.0.1", receiver.port)


@pytest.mark.parametrize("hostname", ["", "0.0.0.0"])
def test_everywhere_is_everywhere(make_receiver, hostname):
    receiver = make_receiver(hostname)
    receiver.start()
    assert receiver._server.socket.getsockname()[0] == "0.0.0.0"


def test_a_port_in_use_is_one_line_that_says_what_to_do(make_receiver):
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        with pytest.raises(StartError) as caught:
            make_receiver(port=port).start()
    assert str(caught.value).startswith(f"AE_PORT: localhost:{port} is in use")
    assert "\n" not in str(caught.value)


def test_a_host_that_is_not_here_names_the_setting(make_receiver):
    with pytest.raises(StartError, match=r"AE_HOSTNAME: cannot listen on 203\.0\.113\.1:"):
        make_receiver("203.0.113.1").start()


def test_the_port_is_known_only_after_the_start(make_receiver):
    with pytest.raises(StartError):
        _ = make_receiver().port


def test_many_may_connect_at_the_same_moment(make_receiver):
    receiver = make_receiver()
    receiver.start()
    connections = [socket.create_connection(("127.0.0.1", receiver.port), timeout=2) for _ in range(60)]
    for connection in connections:
        connection.close()
    assert receiver._server.request_queue_size >= 512


@pytest.mark.parametrize(
    ("level", "expected"), [("none", logging.WARNING), ("standard", logging.INFO), ("debug", logging.DEBUG)]
)
def test_pynetdicom_tells_as_much_as_it_is_asked_to(level, expected):
    before = logging.getLogger("pynetdicom").level, _config.LOG_HANDLER_LEVEL
    try:
        configure_pynetdicom_logging(level)
        assert logging.getLogger("pynetdicom").level == expected
        assert (_config.LOG_HANDLER_LEVEL == "none") == (level == "none")
    finally:
        logging.getLogger("pynetdicom").setLevel(before[0])
        _config.LOG_HANDLER_LEVEL = before[1]


def test_a_scanner_may_pause_between_messages_but_not_within_one(make_receiver):
    receiver = make_receiver()
    receiver.start()
    assert receiver._server.ae.network_timeout >= 300
    with socket.create_connection(("127.0.0.1", receiver.port), timeout=2):
        deadline = time.monotonic() + 5
        while not receiver._server._connections:
            assert time.monotonic() < deadline, "the connection was not accepted"
            time.sleep(0.005)
        (connection,) = receiver._server._connections
        assert connection.gettimeout() == 60
