from __future__ import annotations

import os
import resource
import signal
import socket
import time
from pathlib import Path

import pytest

from dicom_gateway.errors import StartError
from dicom_gateway.peers import AssociationLimits
from dicom_gateway.receiver import Receiver, ReceiverSettings
from tests.fakes.instances import ct
from tests.fakes.store_scu import association, send


@pytest.fixture
def make_receiver(tmp_path):
    """Return a maker of receivers; ``ended`` of each has the receptions that have ended."""
    receivers = []

    def make(hostname="localhost", port=0, **settings):
        ended = []
        receiver = Receiver(
            ReceiverSettings(ae_title="STORESCP", hostname=hostname, port=port, spool=tmp_path, **settings),
            on_ended=lambda reception, complete: ended.append((reception, complete)),
        )
        receiver.ended = ended
        receivers.append(receiver)
        return receiver

    yield make
    for receiver in receivers:
        receiver.stop(grace_seconds=0)


def wait_until(condition, *, seconds=15.0):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.01)


def processes_of(receiver):
    return [process.pid for process in receiver._keeper.processes]


def test_localhost_listens_on_the_loopback_alone(make_receiver):
    receiver = make_receiver()
    receiver.start()
    assert receiver._listening[0].socket.getsockname() == ("127.0.0.1", receiver.port)


@pytest.mark.parametrize("hostname", ["", "0.0.0.0"])
def test_everywhere_is_everywhere(make_receiver, hostname):
    receiver = make_receiver(hostname)
    receiver.start()
    assert receiver._listening[0].socket.getsockname()[0] == "0.0.0.0"


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
    wait_until(lambda: receiver.open_connections == 60)
    for connection in connections:
        connection.close()
    wait_until(lambda: receiver.open_connections == 0)


def test_connections_are_spread_evenly(make_receiver):
    receiver = make_receiver(processes=2)
    receiver.start()
    connections = [socket.create_connection(("127.0.0.1", receiver.port), timeout=2) for _ in range(10)]
    wait_until(lambda: receiver.open_connections == 10)
    assert [len(process.connections) for process in receiver._keeper.processes] == [5, 5]
    for connection in connections:
        connection.close()


def test_a_process_that_dies_ends_its_receptions_and_is_replaced(make_receiver, tmp_path, caplog):
    receiver = make_receiver(processes=2)
    receiver.start()
    before = processes_of(receiver)
    with association(receiver.port) as first, association(receiver.port) as second:
        for opened in (first, second):
            assert send(opened, ct()) == 0x0000
        os.kill(before[0], signal.SIGKILL)
        wait_until(lambda: len(receiver.ended) == 1)
        ((reception, complete),) = receiver.ended
        assert not complete
        assert len(list((tmp_path / reception / "incoming").iterdir())) == 1
        # The other one's association does not notice.
        survivor = first if first.is_established and first.dul.socket.socket else second
        for opened in (first, second):
            if opened is not survivor:
                opened.is_established = False
        wait_until(lambda: processes_of(receiver)[0] != before[0])
        assert processes_of(receiver)[1] == before[1]
    with association(receiver.port) as opened:
        assert send(opened, ct()) == 0x0000
    assert "another one is started" in caplog.text


def test_the_processes_follow_a_gateway_that_is_gone(make_receiver):
    receiver = make_receiver(processes=2)
    receiver.start()
    pids = processes_of(receiver)
    receiver._keeper._stopping.set()
    receiver._stopping.set()
    for process in receiver._keeper.processes:
        process._channel.close()
        process._process.wait(timeout=5)
    assert not [pid for pid in pids if Path(f"/proc/{pid}/exe").exists()]


def test_a_peer_that_only_connects_costs_no_more_than_its_connection(make_receiver):
    receiver = make_receiver()
    receiver.start()
    (pid,) = processes_of(receiver)
    with socket.create_connection(("127.0.0.1", receiver.port), timeout=2):
        wait_until(lambda: receiver.open_connections == 1)
        threads = len(list(Path(f"/proc/{pid}/task").iterdir()))
        assert threads <= 4


def test_a_process_that_cannot_be_started_is_tried_again_and_a_stop_does_not_wait_for_it(make_receiver, monkeypatch):
    receiver = make_receiver()
    receiver.start()
    real, failures = receiver._keeper._make, iter([True])

    def new_process():
        if next(failures, False):
            raise OSError(12, "Cannot allocate memory")
        return real()

    monkeypatch.setattr(receiver._keeper, "_make", new_process)
    (before,) = processes_of(receiver)
    os.kill(before, signal.SIGKILL)
    wait_until(lambda: processes_of(receiver) != [before])
    os.kill(processes_of(receiver)[0], signal.SIGKILL)
    began = time.monotonic()
    receiver.stop(grace_seconds=0)
    assert time.monotonic() - began < 10


def test_connections_that_a_process_has_no_descriptor_for_are_not_counted_for_ever(make_receiver):
    receiver = make_receiver()
    receiver.start()
    (process,) = receiver._keeper.processes
    resource.prlimit(process.pid, resource.RLIMIT_NOFILE, (40, 40))
    silent = [socket.create_connection(("127.0.0.1", receiver.port), timeout=2) for _ in range(60)]
    for connection in silent:
        connection.close()
    wait_until(lambda: receiver.open_connections == 0, seconds=40)


def test_who_is_one_too_many_takes_no_place(make_receiver):
    receiver = make_receiver(limits=AssociationLimits(in_all=10, of_one_peer=3))
    receiver.start()
    silent = [socket.create_connection(("127.0.0.1", receiver.port), timeout=2) for _ in range(60)]
    wait_until(lambda: receiver.open_connections == 3)
    assert len(receiver._keeper.processes[0].rejected) <= 32
    with socket.create_connection(("127.0.0.1", receiver.port), timeout=2, source_address=("127.0.0.2", 0)):
        wait_until(lambda: receiver.open_connections == 4)
    for connection in silent:
        connection.close()
