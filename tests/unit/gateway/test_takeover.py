"""What ``takeover`` uses of pynetdicom without having been promised it. Where one fails, read that module again."""

from __future__ import annotations

import inspect
import queue
import socket
import sys
import threading

import pytest
from pynetdicom import AE, __version__, association, dul, fsm, transport
from pynetdicom._globals import MODE_ACCEPTOR
from pynetdicom.dimse import DIMSEServiceProvider
from pynetdicom.pdu_primitives import A_ASSOCIATE, AsynchronousOperationsWindowNegotiation

from dicom_gateway.takeover import HeldSocket, agree_on_window

PINNED = "3.0.4"


def test_it_is_the_release_that_was_read():
    assert __version__ == PINNED


def test_an_association_has_what_is_used_of_it():
    made = association.Association(AE(), MODE_ACCEPTOR)
    assert made._kill is False
    assert made._sent_abort is False
    assert made._accepted_cx == {}
    assert inspect.signature(association.Association._run_reactor).parameters.keys() == {"self"}
    assert list(inspect.signature(made._serve_request).parameters) == ["msg", "context_id"]
    for name in ("event_queue", "to_provider_queue", "to_user_queue", "_recv_pdu"):
        assert isinstance(getattr(made.dul, name), queue.Queue)
    assert isinstance(made.dimse, DIMSEServiceProvider)
    assert isinstance(made.dimse.msg_queue, queue.Queue)
    assert made.dimse.message is None
    assert callable(made.dul._idle_timer.restart)
    made.acceptor.supported_contexts = shared = []
    assert made.acceptor._contexts is shared


def test_the_reactor_of_an_association_is_called_once_it_is_established():
    source = inspect.getsource(association.Association.run_reactor)
    assert source.count("self._run_reactor()") == 2


def test_the_dul_thread_looks_at_the_socket_only_when_it_has_nothing_to_send():
    loop = inspect.getsource(dul.DULServiceProvider.run_reactor)
    assert loop.index("self._process_recv_primitive()") < loop.index("elif self._is_transport_event()")
    assert "self.socket.ready" in inspect.getsource(dul.DULServiceProvider._is_transport_event)


def test_a_pdu_is_read_by_two_calls_of_recv():
    assert inspect.getsource(dul.DULServiceProvider._read_pdu_data).count("self.socket.recv(") == 2


def test_a_socket_knows_whether_it_is_connected():
    assert "self._is_connected" in inspect.getsource(transport.AssociationSocket.__init__)
    assert fsm.TRANSITION_TABLE["Evt17", "Sta6"] == "AA-4"


def test_neither_thread_misses_the_other_whenever_it_is_interrupted(monkeypatch):
    """The one that is held loses its turn right after it has said so; the other one lets it go, and holds it again."""
    left, right = socket.socketpair()
    made = association.Association(AE(), MODE_ACCEPTOR)
    held = HeldSocket(made, connection=left, received=b"", pdu_seconds=5, most_message_bytes=None)
    looks = []

    def look():
        while len(looks) < 200:
            looks.append(held.ready)

    thread = threading.Thread(target=look, daemon=True)
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        held.hold()
        thread.start()
        while thread.is_alive():
            if held.is_held(timeout_seconds=5) and thread.is_alive():
                held.let()
                held.hold()
            elif thread.is_alive():
                raise AssertionError("the thread waits, and nobody knows")
            if len(looks) >= 199:
                held.let()
                thread.join(5)
    finally:
        sys.setswitchinterval(before)
        held.let()
        left.close()
        right.close()
    assert len(looks) == 200


def test_the_thread_that_is_held_may_be_let_send_and_may_be_let_read_once():
    left, right = socket.socketpair()
    made = association.Association(AE(), MODE_ACCEPTOR)
    held = HeldSocket(made, connection=left, received=b"", pdu_seconds=5, most_message_bytes=None)
    looks = []
    thread = threading.Thread(target=lambda: [looks.append(held.ready) for _ in range(3)], daemon=True)
    try:
        right.sendall(b"x")
        held.hold()
        thread.start()
        for let, expected in ((held.let_send, [False]), (held.let_read, [False, True])):
            assert held.is_held(timeout_seconds=5)
            let()
            assert held.is_held(timeout_seconds=5)
            assert looks == expected
    finally:
        held.let()
        thread.join(5)
        left.close()
        right.close()


def requested(*proposed):
    """Return an association whose requestor has proposed a window, or none."""
    made = association.Association(AE(), MODE_ACCEPTOR)
    primitive = A_ASSOCIATE()
    if proposed:
        item = AsynchronousOperationsWindowNegotiation()
        item.maximum_number_operations_invoked, item.maximum_number_operations_performed = proposed
        primitive.user_information = [item]
    made.requestor.primitive = primitive
    return made


@pytest.mark.parametrize(
    ("proposed", "agreed"),
    [((), 1), ((1, 1), 1), ((1, 5), 1), ((2, 1), 2), ((16, 0), 16), ((17, 17), 16), ((0, 0), 16), ((65535, 1), 16)],
)
def test_no_larger_window_is_agreed_on_than_was_proposed_or_is_served(proposed, agreed):
    made = requested(*proposed)
    assert agree_on_window(made, most=16) == agreed
    assert made.acceptor.asynchronous_operations == (agreed, 1)


def test_nobody_but_us_answers_a_window():
    made = requested(8, 1)
    assert made.acse._check_async_ops() is None
    source = inspect.getsource(association.Association.run_reactor)
    assert source.index("evt.EVT_REQUESTED") < source.index("negotiate_association()")
