from __future__ import annotations

import socket
import struct
import threading
from contextlib import suppress
from functools import partial

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dicom_gateway import windowed_store
from dicom_gateway.fast_store import Ending, Patience
from dicom_gateway.windowed_store import WindowedStore
from tests.unit.gateway.test_fast_store import ABORT, RELEASE, Instances, Peer, command, pdu, pdv, store

STEPS = ("end", "make whole", "finish")


@pytest.fixture
def make_peer():
    peers = []

    def make(*, window=8, **options):
        peers.append(Peer(make=partial(WindowedStore, window=window), **options))
        return peers[-1]

    yield make
    for peer in peers:
        peer.end.close()
        peer.thread.join(10)


def message(number, content=b"abc"):
    return store(content, uid=b"1.2.%d" % number, message_id=number)


def answered(answer):
    """Return Message ID Being Responded To and Status of a response."""
    values = {}
    at = 6
    while at < len(answer):
        _, number, length = struct.unpack_from("<HHL", answer, at)
        values[number] = answer[at + 8 : at + 8 + length]
        at += 8 + length
    return int.from_bytes(values[0x0120], "little"), int.from_bytes(values[0x0900], "little")


def together(*numbers):
    """Return the steps on instances that were finished together."""
    return [(step, number) for step in STEPS[1:] for number in numbers]


def after_they_began(peer):
    return [step for step in peer.instances.steps if step[0] not in ("begin", "end")]


def test_what_comes_without_a_pause_is_finished_together(make_peer):
    peer = make_peer(window=8)
    peer.end.sendall(b"".join(map(message, range(1, 9))))
    assert [answered(peer.answer()) for _ in range(8)] == [(number, 0) for number in range(1, 9)]
    assert after_they_began(peer) == [*together(1, 2, 3, 4), *together(5, 6, 7, 8)]


def test_who_waits_for_each_answer_gets_each_at_once(make_peer):
    peer = make_peer()
    for number in (1, 2, 3):
        peer.end.sendall(message(number))
        assert answered(peer.answer()) == (number, 0)
    assert after_they_began(peer) == [*together(1), *together(2), *together(3)]


def test_who_has_only_tls_things_to_say_gets_the_answers_all_the_same(make_peer, monkeypatch):
    # As after a TLS KeyUpdate: there is something to read, of which nothing is for us.
    monkeypatch.setattr(WindowedStore, "_has_more_in_time", lambda _: True)
    peer = make_peer(window=8)
    peer.end.sendall(message(1) + message(2))
    assert [answered(peer.answer()) for _ in range(2)] == [(1, 0), (2, 0)]


def test_who_pauses_in_the_middle_of_an_instance_gets_the_answers_to_those_before(make_peer):
    peer = make_peer()
    third = message(3, b"x" * 1000)
    peer.end.sendall(message(1) + message(2) + third[:500])
    assert [answered(peer.answer()) for _ in range(2)] == [(1, 0), (2, 0)]
    peer.end.sendall(third[500:])
    assert answered(peer.answer()) == (3, 0)


def test_an_answer_does_not_wait_for_ever_for_a_peer_that_never_pauses(make_peer, monkeypatch):
    monkeypatch.setattr(windowed_store, "_LONGEST_WAIT_SECONDS", 0.05)
    peer = make_peer()
    peer.path._more = type("AlwaysMore", (), {"poll": lambda *_: [(0, 1)]})()
    peer.end.sendall(message(1) + pdu(pdv(command(b"1.2.2", message_id=2), is_command=True)))
    answers = []
    reader = threading.Thread(target=lambda: answers.append(peer.answer()))
    reader.start()
    while reader.is_alive():
        peer.end.sendall(pdu(pdv(b"x", is_command=False, is_last=False)))
        reader.join(0.01)
    assert [answered(answer) for answer in answers] == [(1, 0)]


@pytest.mark.parametrize(
    "again",
    [
        pytest.param(store(b"def", uid=b"1.2.1 ", message_id=2), id="a UID"),
        pytest.param(store(b"def", uid=b"1.2.9", message_id=1), id="a Message ID"),
    ],
)
def test_what_is_used_again_before_its_answer_waits_for_it(make_peer, again):
    peer = make_peer()
    peer.end.sendall(message(1) + again)
    assert [answered(peer.answer())[0] for _ in range(2)] == [1, 2 if b"1.2.1 " in again else 1]
    begins = [at for at, (step, _) in enumerate(peer.instances.steps) if step == "begin"]
    assert peer.instances.steps.index(("finish", 1)) < begins[1]


def test_one_that_is_refused_takes_no_other_along(make_peer):
    peer = make_peer(instances=Instances(finishing=lambda request: 0xA700 if request.message_id == 2 else 0))
    peer.end.sendall(b"".join(map(message, (1, 2, 3))))
    assert [answered(peer.answer()) for _ in range(3)] == [(1, 0), (2, 0xA700), (3, 0)]


@pytest.mark.parametrize(
    "other", [RELEASE, ABORT, pdu(pdv(command(field=0x0030), is_command=True))], ids=["release", "abort", "echo"]
)
def test_what_is_no_store_is_handed_back_once_all_is_answered(make_peer, other):
    peer = make_peer()
    peer.end.sendall(b"".join(map(message, (1, 2, 3))) + other)
    peer.thread.join(10)
    assert peer.result == (Ending.OTHER, other)
    assert after_they_began(peer) == together(1, 2, 3)
    assert [answered(peer.answer()) for _ in range(3)] == [(1, 0), (2, 0), (3, 0)]


def test_what_is_invalid_is_found_after_what_came_before_it_is_answered(make_peer):
    peer = make_peer()
    peer.end.sendall(message(1) + message(2) + pdu())
    assert [answered(peer.answer()) for _ in range(2)] == [(1, 0), (2, 0)]
    assert peer.ended()[0] is Ending.INVALID


def test_what_came_whole_is_kept_where_nobody_is_left_to_be_told(make_peer):
    peer = make_peer()
    peer.end.sendall(message(1) + message(2) + message(3)[:-2])
    peer.end.close()
    peer.thread.join(10)
    assert peer.result == (Ending.CLOSED, b"")
    assert (len(peer.instances.stored), peer.instances.abandoned) == (2, 1)


def test_a_peer_that_takes_no_answer_is_left_and_what_came_whole_is_kept(make_peer):
    peer = make_peer()
    peer.served.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, struct.pack("ll", 0, 50_000))
    peer.served.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1)
    sent = 0
    with suppress(OSError):
        while peer.thread.is_alive() and sent < 10_000:
            peer.end.sendall(message(sent % 60_000 + 1))
            sent += 1
    peer.thread.join(10)
    assert peer.result == (Ending.CLOSED, b"")
    assert len(peer.instances.stored) + peer.instances.abandoned == peer.instances.begun


def test_a_disk_that_is_slow_is_not_held_against_the_peer(make_peer):
    slow = threading.Event()

    def finishing(request):
        slow.wait(0.6 if request.message_id == 1 else 0)
        return 0

    patience = Patience(between_messages_seconds=20, within_message_seconds=0.4)
    peer = make_peer(instances=Instances(finishing=finishing), patience=patience)
    second = message(2, b"x" * 1000)
    peer.end.sendall(message(1) + second[:500])
    assert answered(peer.answer()) == (1, 0)
    peer.end.sendall(second[500:])
    assert answered(peer.answer()) == (2, 0)


def streams():
    """Draw what a peer may send without a pause: requests cut into PDVs and PDUs as it likes, in small pieces."""
    numbers = st.integers(1, 6)
    requests = st.tuples(numbers, numbers, st.binary(max_size=40), st.sampled_from([0, 0, 0, 0xA700, 0xC000]))
    return st.lists(requests, min_size=1, max_size=30)


@settings(max_examples=max(100, settings.default.max_examples), deadline=None)
@given(requests=streams(), window=st.integers(2, 16), data=st.data())
def test_however_it_is_sent_each_is_kept_and_answered_once(requests, window, data):
    """Each content says what becomes of it: statuses belong to requests, whatever Message IDs and UIDs they share."""
    draw = data.draw
    stream, group = b"", []
    for number, (message_id, uid, content, _) in enumerate(requests):
        whole = command(b"1.2.%d" % uid, message_id=message_id)
        cuts = sorted(draw(st.sets(st.integers(1, max(1, len(content))), max_size=3)))
        pieces = [content[a:b] for a, b in zip([0, *cuts], [*cuts, None], strict=True)]
        group.append(pdv(whole, is_command=True))
        group += [pdv(one, is_command=False, is_last=at == len(pieces) - 1) for at, one in enumerate(pieces)]
        if draw(st.booleans()) or number == len(requests) - 1:
            stream, group = stream + pdu(*group), []
    statuses = iter(status for *_, status in requests)
    busy, most_busy = [], []

    class Watched(Instances):
        def begin(self, request, context_id):
            assert all(request.message_id != other.message_id for other in busy)
            assert all(request.sop_instance_uid != other.sop_instance_uid for other in busy)
            busy.append(request)
            most_busy.append(len(busy))
            return super().begin(request, context_id)

    def finishing(request):
        busy.remove(request)
        return next(statuses)

    peer = Peer(make=partial(WindowedStore, window=window), instances=Watched(finishing=finishing))
    size = draw(st.integers(1, 2000))
    for at in range(0, len(stream), size):
        peer.end.sendall(stream[at : at + size])
    peer.end.sendall(RELEASE)
    answers = [answered(peer.answer()) for _ in requests]
    assert peer.ended() == (Ending.OTHER, RELEASE)
    assert answers == [(message_id, status) for message_id, _, _, status in requests]
    assert peer.instances.stored == [content for _, _, content, _ in requests]
    assert max(most_busy) <= max(1, window // 2)
    assert peer.instances.abandoned == 0
