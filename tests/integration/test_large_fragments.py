"""Fragments that are moved from the socket to the file without a copy of ours in between."""

from __future__ import annotations

import errno
import os
import random
import socket
from pathlib import Path

import pytest

from dicom_gateway.association_store import AssociationStore
from dicom_gateway.fast_store import Ending
from dicom_gateway.reception import Reception
from tests.fakes.instances import as_file, ct, received
from tests.unit.gateway.test_fast_store import RELEASE, Peer, command, pdu, pdv, store
from tests.unit.gateway.test_reception import ORIGIN, begun

_FRAGMENT_BYTES = 256 * 1024


@pytest.fixture
def moved(monkeypatch):
    """The list of how much was moved each time, as it grows."""
    sizes, real = [], os.splice
    monkeypatch.setattr(os, "splice", lambda *arguments: sizes.append(real(*arguments)) or sizes[-1])
    return sizes


@pytest.fixture
def peer():
    made = Peer()
    yield made
    made.end.close()
    made.thread.join(10)


@pytest.fixture
def reception(tmp_path):
    made = Reception(tmp_path / "r", origin=ORIGIN, durability="none")
    yield made
    made.close()


def statuses(answers):
    return [int.from_bytes(answer[answer.index(b"\0\0\0\x09") + 8 :][:2], "little") for answer in answers]


@pytest.mark.parametrize("first_bytes", [1, 300, 100_000, _FRAGMENT_BYTES])
def test_whatever_comes_first_nothing_is_lost_or_swapped(peer, moved, first_bytes):
    contents = [random.Random(seed).randbytes(_FRAGMENT_BYTES + seed) for seed in range(4)]
    for content in contents:
        stream = store(content)
        for part in (stream[:first_bytes], stream[first_bytes:]):
            peer.end.sendall(part)
        peer.answer()
    peer.end.sendall(RELEASE)
    assert peer.ended() == (Ending.OTHER, RELEASE)
    assert peer.instances.stored == contents
    assert sum(moved) > len(contents) * _FRAGMENT_BYTES // 2


def test_small_ones_are_not_moved(peer, moved):
    for _ in range(20):
        peer.end.sendall(store(b"x" * 10_000))
        peer.answer()
    peer.end.sendall(RELEASE)
    assert peer.ended() == (Ending.OTHER, RELEASE)
    assert not moved


def test_fragments_of_all_sizes_are_one_data_set(peer, moved):
    sizes = [70_000, 3, 200_000, 0, 65_536, 65_535, 1]
    parts = [random.Random(seed).randbytes(size) for seed, size in enumerate(sizes)]
    pdus = [pdu(pdv(part, is_command=False, is_last=False)) for part in parts]
    peer.end.sendall(pdu(pdv(command(), is_command=True)) + b"".join(pdus) + pdu(pdv(b"", is_command=False)))
    peer.answer()
    peer.end.sendall(RELEASE)
    assert peer.ended() == (Ending.OTHER, RELEASE)
    assert peer.instances.stored == [b"".join(parts)]
    assert moved


@pytest.mark.parametrize("refusing", ["socket", "file"])
def test_where_it_cannot_be_moved_it_is_copied(reception, tmp_path, monkeypatch, refusing):
    real = os.splice

    def splice(source, target, count):
        if (target < 0) or (refusing == "socket") == _is_socket(source):
            raise OSError(errno.EINVAL, "Invalid argument")
        return real(source, target, count)

    monkeypatch.setattr(os, "splice", splice)
    instances = [received(ct(PixelData=os.urandom(300_000))) for _ in range(3)]
    _store_all(instances, AssociationStore(lambda: reception), expected=[0, 0, 0])
    assert {path.read_bytes() for path in tmp_path.rglob("*.dcm")} == {as_file(one) for one in instances}


def test_a_disk_that_fails_in_the_middle_costs_that_one_only(reception, tmp_path, monkeypatch):
    real, failures = os.splice, [True]

    def splice(source, target, count):
        if not _is_socket(source) and failures:
            failures.clear()
            real(source, target, count // 2)
            raise OSError(errno.ENOSPC, "No space left on device")
        return real(source, target, count)

    monkeypatch.setattr(os, "splice", splice)
    instances = [received(ct(PixelData=os.urandom(600_000))) for _ in range(3)]
    before = list(Path("/proc/self/fd").iterdir())
    _store_all(instances, AssociationStore(lambda: reception), expected=[0xA700, 0, 0])
    assert {path.read_bytes() for path in tmp_path.rglob("*.dcm")} == {as_file(one) for one in instances[1:]}
    assert len(list(Path("/proc/self/fd").iterdir())) <= len(before) + 1  # the reception's own folder


def test_a_connection_that_breaks_in_the_middle_leaves_nothing(peer, moved):
    peer.end.sendall(store(bytes(_FRAGMENT_BYTES))[:200_000])
    peer.end.shutdown(socket.SHUT_WR)
    peer.thread.join(10)
    assert peer.result == (Ending.CLOSED, b"")
    assert peer.instances.stored == []
    assert peer.instances.abandoned == 1
    assert moved


def test_the_size_tells_what_was_moved_too(reception):
    pipe = os.pipe()
    incoming = begun(reception)
    incoming.write(memoryview(b"abc"))
    os.write(pipe[1], b"defg")
    incoming.take(pipe[0], 4)
    assert incoming.size_bytes == 7
    incoming.discard()
    for descriptor in pipe:
        os.close(descriptor)


def _is_socket(descriptor):
    return str(Path(f"/proc/self/fd/{descriptor}").readlink()).startswith("socket:")


def _store_all(instances, taking, *, expected):
    taking.transfer_syntaxes = {1: instances[0].transfer_syntax_uid}
    peer = Peer(begin=taking.begin)
    answers = []
    for one in instances:
        request = pdu(pdv(command(one.sop_instance_uid.encode()), is_command=True))
        peer.end.sendall(request + pdu(pdv(one.data_set, is_command=False)))
        answers.append(peer.answer())
    peer.end.sendall(RELEASE)
    assert peer.ended() == (Ending.OTHER, RELEASE)
    assert statuses(answers) == expected
