"""Senders that send on before they are answered, as was agreed (PS3.7 D.3.3.3), and what becomes of them."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import socket
import struct
import threading
import time
from io import BytesIO

import pytest
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian
from pynetdicom.dimse_primitives import C_ECHO

from dicom_gateway.commitment import STORAGE_COMMITMENT
from dicom_gateway.windowed_store import MOST_OUTSTANDING
from tests.benchmarks import raw_sender
from tests.fakes.instances import as_file, ct, encoded, received
from tests.fakes.pipelining_scu import answers, prepared
from tests.fakes.store_scu import VERIFICATION, association, exchange, store_request
from tests.services import wait_until

CONTEXTS = [(CTImageStorage, ExplicitVRLittleEndian), (VERIFICATION, ExplicitVRLittleEndian)]


@pytest.mark.parametrize(
    ("settings", "contexts", "proposed", "agreed"),
    [
        ({}, CONTEXTS, None, (1, 1)),
        ({}, CONTEXTS, (1, 1), (1, 1)),
        ({}, CONTEXTS, (4, 4), (4, 1)),
        ({}, CONTEXTS, (0, 0), (MOST_OUTSTANDING, 1)),
        ({"durability": "none"}, CONTEXTS, (0, 1), (MOST_OUTSTANDING, 1)),
        ({"is_fast": False}, CONTEXTS, (0, 0), (1, 1)),
        ({}, [*CONTEXTS, (STORAGE_COMMITMENT, ExplicitVRLittleEndian)], (0, 0), (1, 1)),
    ],
)
def test_what_is_agreed_on(make_receiving, settings, contexts, proposed, agreed):
    receiving = make_receiving(**settings)
    with association(receiving.port, contexts=contexts, window=proposed) as opened:
        assert opened.acceptor.asynchronous_operations == agreed


def test_however_much_follows_an_echo_without_a_pause_none_of_it_is_kept_in_memory(make_receiving):
    receiving = make_receiving()
    # More than a process may have in memory of what pynetdicom reads.
    datasets = [ct(PixelData=os.urandom(1_000_000)) for _ in range(40)]
    echo = C_ECHO()
    echo.MessageID, echo.AffectedSOPClassUID = 100, VERIFICATION
    requests = [echo, *(store_request(dataset, number) for number, dataset in enumerate(datasets, start=1))]
    with association(receiving.port, contexts=CONTEXTS, window=(0, 0)) as opened:
        assert dict(exchange(opened, requests)) == {request.MessageID: 0x0000 for request in requests}
    assert len(receiving.stored()) == 40


@pytest.mark.parametrize("durability", ["instance", "none"])
def test_an_echo_between_objects_is_answered_after_those_before_it(make_receiving, durability):
    receiving = make_receiving(durability=durability)
    datasets = [ct(PixelData=os.urandom(size)) for size in (32, 300_000) * 6]
    requests = [store_request(dataset, number) for number, dataset in enumerate(datasets, start=1)]
    for number in (4, 9):
        echo = C_ECHO()
        echo.MessageID, echo.AffectedSOPClassUID = 100 + number, VERIFICATION
        requests.insert(number, echo)
    with association(receiving.port, contexts=CONTEXTS, window=(0, 0)) as opened:
        told = exchange(opened, requests)
    assert dict(told) == {request.MessageID: 0x0000 for request in requests}
    places = {message_id: place for place, (message_id, _) in enumerate(told)}
    assert max(places[number] for number in (1, 2, 3, 4)) < places[104] < min(places[number] for number in (5, 6))
    assert receiving.stored() == {str(one.SOPInstanceUID): as_file(received(one)) for one in datasets}
    assert [complete for _, complete in receiving.ended] == [True]


def test_of_one_uid_twice_each_is_answered_by_what_became_of_the_one_before(make_receiving):
    receiving = make_receiving(on_conflict="reject")
    one, other = (ct(SOPInstanceUID="1.2.3", SeriesDescription=text) for text in "ab")
    half = store_request(one, 1)
    half.DataSet = BytesIO(encoded(one)[:-10])
    requests = [half, *(store_request(dataset, number) for number, dataset in enumerate((other, one, other), start=2))]
    with association(receiving.port, window=(0, 0)) as opened:
        assert exchange(opened, requests) == [(1, 0xC000), (2, 0x0000), (3, 0x0111), (4, 0x0000)]
    assert receiving.stored() == {"1.2.3": as_file(received(other))}


def test_one_message_id_for_all_is_answered_in_the_order_of_the_requests(make_receiving):
    receiving = make_receiving()
    datasets = [ct() for _ in range(8)]
    requests = [store_request(dataset, 7) for dataset in datasets]
    requests[3].AffectedSOPInstanceUID = "1.2.3"
    with association(receiving.port, window=(0, 0)) as opened:
        assert exchange(opened, requests) == [(7, 0xA900 if number == 3 else 0x0000) for number in range(8)]
    assert len(receiving.stored()) == 7


def test_who_sends_more_than_was_agreed_is_answered_all_the_same(make_receiving):
    receiving = make_receiving()
    study = prepared(*(ct() for _ in range(200)))
    opened = raw_sender.Association(study, port=receiving.port, called_ae_title="STORESCP", window=2)
    assert opened.window == 2
    opened.window = 200
    opened.send(raw_sender.encode(study, opened.fragment_bytes))
    opened.release()
    assert len(receiving.stored()) == 200


def test_a_sender_that_dies_with_answers_on_their_way_leaves_what_it_has_sent(make_receiving):
    receiving = make_receiving()
    study = prepared(*(ct(PixelData=os.urandom(20_000)) for _ in range(40)))
    opened = raw_sender.Association(study, port=receiving.port, called_ae_title="STORESCP", window=0)
    told = opened.answers(raw_sender.encode(study, opened.fragment_bytes))
    acknowledged = [next(told) for _ in range(20)]
    opened._connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    opened.close()
    stored = receiving.stored()
    assert [complete for _, complete in receiving.ended] == [False]
    uids = [
        study.instances[message_id - 1].sop_instance_uid.decode() for message_id, status in acknowledged if not status
    ]
    assert len(uids) == 20
    assert set(uids) <= set(stored)
    assert list(answers(receiving.port, prepared(ct()))) == [(0, 0x0000)]


class Load:
    """Senders that send on, over and over, and note what is acknowledged."""

    def __init__(self, port, *, count):
        self.acknowledged, self.sent = {}, {}
        self._port = port
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=self._run, args=(number,)) for number in range(count)]

    def __enter__(self):
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_):
        self._stop.set()
        for thread in self._threads:
            thread.join()

    def _run(self, number):
        draw = random.Random(number)
        while not self._stop.is_set():
            datasets = [
                ct(PixelData=os.urandom(draw.choice([32, 20_000, 300_000]))) for _ in range(draw.randint(1, 40))
            ]
            files = [as_file(received(dataset)) for dataset in datasets]
            with contextlib.suppress(OSError, RuntimeError):
                for place, status in answers(self._port, prepared(*datasets)):
                    assert status == 0x0000
                    self.acknowledged[str(datasets[place].SOPInstanceUID)] = files[place]
            self._stop.wait(0.01)


@pytest.mark.parametrize("durability", ["instance", "association", "none"])
def test_a_process_that_is_killed_takes_nothing_along_that_was_acknowledged(make_receiving, durability):
    receiving = make_receiving(durability=durability, processes=2)
    with Load(receiving.port, count=4) as load:
        for _ in range(3):
            before = len(load.acknowledged)
            wait_until(lambda before=before: len(load.acknowledged) > before + 50, seconds=60, what="the load goes on")
            time.sleep(random.uniform(0, 0.05))  # the moment of the kill is what this test draws by chance
            with contextlib.suppress(ProcessLookupError):  # it has not been replaced yet
                os.kill(random.choice(receiving.receiver._keeper.processes).pid, signal.SIGKILL)
    wait_until(lambda: receiving.receiver.restart_count > 0, seconds=30, what="one was killed, and replaced")
    stored = receiving.stored()
    assert {uid for uid, content in load.acknowledged.items() if stored.get(uid) != content} == set()


def test_a_stop_loses_nothing_that_was_acknowledged(make_receiving):
    receiving = make_receiving()
    with Load(receiving.port, count=4) as load:
        wait_until(lambda: len(load.acknowledged) > 100, seconds=60, what="the load goes on")
        began = time.monotonic()
        receiving.receiver.stop(grace_seconds=0)
        assert time.monotonic() - began < 10
    stored = receiving.stored()
    assert {uid for uid, content in load.acknowledged.items() if stored.get(uid) != content} == set()
