from __future__ import annotations

import random
import socket
import struct
import threading
from contextlib import suppress
from functools import partial

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydicom.uid import CTImageStorage

from dicom_gateway.dimse_command import LONGEST_COMMAND_BYTES
from dicom_gateway.fast_store import Ending, FastStore, Patience
from dicom_gateway.windowed_store import WindowedStore

PATIENT = Patience(between_messages_seconds=20, within_message_seconds=20)
RELEASE = struct.pack(">BxLL", 0x05, 4, 0)
ABORT = struct.pack(">BxLL", 0x07, 4, 0)


def element(number, value):
    return struct.pack("<HHL", 0, number, len(value)) + value


def command(uid=b"1.2.3\0", *, field=0x0001, message_id=1):
    elements = element(0x0002, CTImageStorage.encode() + b"\0") + element(0x0100, struct.pack("<H", field))
    elements += element(0x0110, struct.pack("<H", message_id)) + element(0x0800, b"\0\0") + element(0x1000, uid)
    return element(0, struct.pack("<L", len(elements))) + elements


def pdv(content, *, is_command, is_last=True, context_id=1):
    return struct.pack(">LBB", len(content) + 2, context_id, is_command | is_last << 1) + content


def pdu(*pdvs):
    content = b"".join(pdvs)
    return struct.pack(">BxL", 0x04, len(content)) + content


def store(data_set, *, uid=b"1.2.3\0", message_id=1):
    return pdu(pdv(command(uid, message_id=message_id), is_command=True)) + pdu(pdv(data_set, is_command=False))


class Instances:
    """Takes instances, and notes each step on each of them, by its Message ID."""

    def __init__(self, *, finishing=lambda _: 0x0000):
        self.stored, self.abandoned, self.begun = [], 0, 0
        self.steps, self.finishing = [], finishing

    def begin(self, request, context_id):
        self.begun += 1
        return Taken(self, request)


class Taken:
    def __init__(self, instances, request):
        self.instances, self.request, self.content = instances, request, b""
        self._step("begin")

    def write(self, fragment):
        self.content += bytes(fragment)

    def end(self):
        self._step("end")

    def make_whole(self):
        self._step("make whole")

    def finish(self):
        self._step("finish")
        self.instances.stored.append(self.content)
        return self.instances.finishing(self.request)

    def abandon(self):
        self.instances.abandoned += 1

    def _step(self, name):
        self.instances.steps.append((name, self.request.message_id))


class Peer:
    """A connection whose other end a path serves in a thread."""

    def __init__(self, *, patience=PATIENT, received=b"", is_ended=lambda: False, make=FastStore, instances=None):
        self.end, self.served = socket.socketpair()
        self.end.settimeout(10)
        self.served.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, struct.pack("ll", 0, 20_000))
        self.instances = instances or Instances()
        self.path = make(self.served, contexts={1, 3}, begin=self.instances.begin, is_ended=is_ended, patience=patience)
        self.result = None
        self.thread = threading.Thread(target=self._serve, args=(received,))
        self.thread.start()

    def _serve(self, received):
        self.result = self.path.serve(received)
        # Nobody reads on: who sends more hears of it, and does not wait.
        self.served.shutdown(socket.SHUT_RD)
        if self.result[0] is not Ending.OTHER:
            self.served.close()

    def answer(self):
        kind, length = struct.unpack(">BxL", self.end.recv(6, socket.MSG_WAITALL))
        assert kind == 0x04
        return self.end.recv(length, socket.MSG_WAITALL)

    def ended(self):
        self.thread.join(10)
        assert not self.thread.is_alive(), "the path was not left"
        with suppress(OSError):
            self.served.close()
        self.end.close()
        return self.result


PATHS = {"one at a time": FastStore, **{f"window {size}": partial(WindowedStore, window=size) for size in (2, 3, 16)}}


@pytest.fixture(params=PATHS)
def make_peer(request):
    peers = []

    def make(**options):
        peers.append(Peer(make=PATHS[request.param], **options))
        return peers[-1]

    yield make
    for peer in peers:
        peer.end.close()
        peer.thread.join(10)


def test_instances_are_stored_and_answered_until_something_else_comes(make_peer):
    peer = make_peer()
    for content in (b"abc", b"x" * 2_000_000):
        peer.end.sendall(store(content))
        peer.answer()
    peer.end.sendall(RELEASE)
    assert peer.ended() == (Ending.OTHER, RELEASE)
    assert peer.instances.stored == [b"abc", b"x" * 2_000_000]
    assert peer.instances.abandoned == 0


def test_however_a_message_is_cut_it_is_the_same(make_peer):
    content = bytes(range(256)) * 40
    for seed in range(30):
        cuts = random.Random(seed)
        pieces, position = [], 0
        while position < len(content):
            size = cuts.choice([1, 5, 300, 4000])
            pieces.append(content[position : position + size])
            position += size
        whole = command()
        split = cuts.randrange(len(whole))
        pdvs = [pdv(whole[:split], is_command=True, is_last=False), pdv(whole[split:], is_command=True)]
        pdvs += [pdv(piece, is_command=False, is_last=False) for piece in pieces] + [pdv(b"", is_command=False)]
        stream, group = b"", []
        for one in pdvs:
            group.append(one)
            if cuts.random() < 0.5:
                stream, group = stream + pdu(*group), []
        stream += pdu(*group) if group else b""
        peer = make_peer()
        while stream:
            size = cuts.choice([1, 3, 7, 1000, 100_000])
            peer.end.sendall(stream[:size])
            stream = stream[size:]
        peer.answer()
        peer.end.sendall(RELEASE)
        assert peer.ended()[0] is Ending.OTHER
        assert peer.instances.stored == [content], seed


def test_what_was_read_before_comes_first(make_peer):
    whole = store(b"abc")
    peer = make_peer(received=whole[:50])
    peer.end.sendall(whole[50:] + store(b"def") + RELEASE + b"more")
    peer.answer(), peer.answer()
    assert peer.ended() == (Ending.OTHER, RELEASE + b"more")
    assert peer.instances.stored == [b"abc", b"def"]


def test_another_message_is_handed_back_whole(make_peer):
    echo, rest = command(field=0x0030), pdv(b"data", is_command=False)
    peer = make_peer()
    peer.end.sendall(
        pdu(pdv(command(), is_command=True), pdv(b"abc", is_command=False), pdv(echo, is_command=True), rest)
    )
    peer.answer()
    assert peer.ended() == (Ending.OTHER, pdu(pdv(echo, is_command=True)) + pdu(rest))
    assert peer.instances.stored == [b"abc"]


def test_another_message_in_pieces_is_handed_back_as_one(make_peer):
    echo = command(field=0x0030)
    peer = make_peer()
    peer.end.sendall(pdu(pdv(echo[:20], is_command=True, is_last=False)))
    peer.end.sendall(pdu(pdv(echo[20:], is_command=True)))
    assert peer.ended() == (Ending.OTHER, pdu(pdv(echo, is_command=True)))


@pytest.mark.parametrize("part", [0, 3, 20, -12, -3, -1])
def test_an_instance_whose_end_does_not_come_is_abandoned(make_peer, part):
    whole = store(b"abcdef")
    peer = make_peer()
    peer.end.sendall(whole[:part])
    peer.end.close()
    peer.thread.join(10)
    assert peer.result == (Ending.CLOSED, b"")
    assert peer.instances.stored == []
    has_begun = len(whole[:part]) >= len(pdu(pdv(command(), is_command=True)))
    assert peer.instances.abandoned == has_begun


def test_an_abort_in_the_middle_is_handed_back(make_peer):
    peer = make_peer()
    peer.end.sendall(pdu(pdv(command(), is_command=True)) + ABORT)
    assert peer.ended() == (Ending.OTHER, ABORT)
    assert peer.instances.abandoned == 1


@pytest.mark.parametrize(
    "stream",
    [
        pytest.param(pdu(), id="a PDU without a PDV"),
        pytest.param(pdu(b"\0\0\0\x01\x01"), id="a PDV without a control header"),
        pytest.param(pdu(struct.pack(">LBB", 1, 1, 3)), id="a PDV that is too short"),
        pytest.param(pdu(struct.pack(">LBB", 4_000_000_000, 1, 3) + b"x" * 50), id="a PDV longer than its PDU"),
        pytest.param(pdu(pdv(command(), is_command=True, context_id=5)), id="a context that was not accepted"),
        pytest.param(pdu(pdv(b"data", is_command=False)), id="data without a command"),
        pytest.param(pdu(pdv(command(), is_command=True)) * 2, id="a command in the middle of a message"),
        pytest.param(
            pdu(pdv(command(), is_command=True), pdv(b"x", is_command=False, context_id=3)), id="two contexts in one"
        ),
        pytest.param(pdu(pdv(command(), is_command=True)) + RELEASE, id="a release in the middle of a message"),
    ],
)
def test_what_is_no_message_of_the_association_ends_it(make_peer, stream):
    peer = make_peer()
    peer.end.sendall(stream)
    assert peer.ended()[0] is Ending.INVALID
    assert peer.instances.stored == []


def test_a_command_without_an_end_ends_it(make_peer):
    peer = make_peer()
    piece = pdu(pdv(b"\0" * 16_000, is_command=True, is_last=False))
    with suppress(OSError):
        for _ in range(LONGEST_COMMAND_BYTES // 16_000 + 2):
            peer.end.sendall(piece)
    assert peer.ended()[0] is Ending.INVALID


def test_a_peer_that_falls_silent_is_left(make_peer):
    peer = make_peer(patience=Patience(between_messages_seconds=0.1, within_message_seconds=20))
    assert peer.ended()[0] is Ending.SILENT


def test_a_peer_that_trickles_within_a_message_is_left(make_peer):
    peer = make_peer(
        patience=Patience(between_messages_seconds=20, within_message_seconds=0.2, slowest_bytes_per_second=1e9)
    )
    peer.end.sendall(pdu(pdv(command(), is_command=True)))
    trickle = threading.Event()
    with suppress(OSError):
        while peer.thread.is_alive():
            peer.end.sendall(pdu(pdv(b"x", is_command=False, is_last=False)))
            trickle.wait(0.02)
    assert peer.ended()[0] is Ending.SILENT
    assert peer.instances.abandoned == 1


def test_a_path_that_is_told_to_end_ends(make_peer):
    peer = make_peer(is_ended=lambda: True)
    assert peer.ended()[0] is Ending.CLOSED


def damaged(good):
    """Draw what becomes of a good stream where something overwrites a stretch of it."""
    return st.builds(
        lambda at, junk: good[:at] + junk + good[at + len(junk) :],
        st.integers(0, len(good) - 1),
        st.binary(min_size=1, max_size=12),
    )


def pieces_of_messages():
    """Draw PDVs that may be in a message, in any order, with lengths and flags that may be wrong."""
    contents = st.sampled_from([command(), command()[:17], command(field=0x0030), command(b"no uid"), b"abc", b""])
    flags, contexts = st.sampled_from([0, 1, 2, 3, 255]), st.sampled_from([1, 3, 5])
    lengths = st.sampled_from([0, 0, 0, 0, -3, 1, 2**31])
    pdvs = st.builds(
        lambda content, flag, context_id, more: (
            struct.pack(">LBB", max(0, len(content) + 2 + more), context_id, flag) + content
        ),
        *(contents, flags, contexts, lengths),
    )
    pdus = st.builds(
        lambda kind, parts, more: struct.pack(">BxL", kind, max(0, sum(map(len, parts)) + more)) + b"".join(parts),
        *(st.sampled_from([4, 4, 4, 4, 5, 7, 0]), st.lists(pdvs, max_size=4), lengths),
    )
    return st.lists(pdus | st.just(store(b"whole")), min_size=1, max_size=8).map(b"".join)


@settings(max_examples=max(150, settings.default.max_examples), deadline=None)
@given(
    stream=damaged(store(b"abcdefgh" * 30) + store(b"12345678" * 30)) | pieces_of_messages(),
    size=st.integers(1, 200),
    before=st.integers(0, 200),
    make=st.sampled_from(list(PATHS.values())),
)
def test_whatever_comes_the_path_is_left(stream, size, before, make):
    peer = Peer(received=stream[:before], make=make)
    with suppress(OSError):
        for at in range(before, len(stream), size):
            peer.end.sendall(stream[at : at + size])
        peer.end.shutdown(socket.SHUT_WR)
    ending, rest = peer.ended()
    assert isinstance(ending, Ending)
    assert rest == b"" or ending is Ending.OTHER
    assert len(peer.instances.stored) + peer.instances.abandoned == peer.instances.begun
    assert peer.instances.abandoned <= 1
