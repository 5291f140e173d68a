"""What a sender may rely on, whichever path its objects take: the gateway's own, or pynetdicom's."""

from __future__ import annotations

import os
import shutil
import struct
import subprocess
import time
from contextlib import suppress

import pytest
from pydicom.data import get_testdata_file
from pydicom.uid import (
    CTImageStorage,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
)
from pynetdicom.pdu_primitives import P_DATA

from dicom_gateway.receiver import Receiver, ReceiverSettings
from dicom_gateway.spool import Spool
from tests.fakes.instances import as_file, ct, encoded, received
from tests.fakes.pipelining_scu import answers, prepared
from tests.fakes.store_scu import association, die_inside_an_object, send

VERIFICATION = "1.2.840.10008.1.1"


class Path:
    """A receiver that uses one of the paths, and what it received."""

    def __init__(self, root, *, is_fast, **options):
        self.spool = Spool(root)
        self.ended = []
        settings = ReceiverSettings(
            ae_title="STORESCP", hostname="localhost", port=0, spool=root, is_fast=is_fast, **options
        )
        self.receiver = Receiver(
            settings, on_ended=lambda reception, complete: self.ended.append((reception, complete))
        )
        self.receiver.start()
        self.port = self.receiver.port

    def studies(self):
        """Return what one association has sent, once it is over."""
        wait_until(lambda: self.ended)
        ((reception, complete),) = self.ended
        return self.spool.collect(reception, complete=complete)

    def files(self):
        """Return the content of each file by its name."""
        return {path.name: path.read_bytes() for study in self.studies() for path in study.folder.rglob("*.dcm")}


@pytest.fixture(params=["fast", "stock"])
def path(request, tmp_path):
    path = Path(tmp_path, is_fast=request.param == "fast")
    yield path
    path.receiver.stop(grace_seconds=0)


def wait_until(condition, *, seconds=15.0):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.01)


@pytest.mark.parametrize("syntax", [ExplicitVRLittleEndian, ImplicitVRLittleEndian, ExplicitVRBigEndian])
def test_an_object_is_stored_bit_for_bit(path, syntax):
    datasets = [ct(PixelData=os.urandom(size)) for size in (32, 400_000)]
    with association(path.port, contexts=[(CTImageStorage, syntax)]) as opened:
        for dataset in datasets:
            assert send(opened, dataset, transfer_syntax_uid=syntax) == 0x0000
    expected = [received(dataset, transfer_syntax_uid=syntax) for dataset in datasets]
    assert path.files() == {f"{one.sop_instance_uid}.dcm": as_file(one) for one in expected}


def test_a_release_makes_it_complete_and_an_abort_does_not(path):
    with association(path.port) as opened:
        assert send(opened, ct()) == 0x0000
    wait_until(lambda: path.ended)
    with association(path.port) as opened:
        assert send(opened, ct()) == 0x0000
        opened.abort()
    wait_until(lambda: len(path.ended) == 2)
    assert [complete for _, complete in path.ended] == [True, False]


def test_a_sender_that_dies_inside_an_object_leaves_the_whole_ones(path):
    with association(path.port) as opened:
        for _ in range(2):
            assert send(opened, ct()) == 0x0000
        die_inside_an_object(opened)
        (study,) = path.studies()
        opened.is_established = False
    assert (study.record.instance_count, study.record.complete) == (2, False)


@pytest.mark.parametrize("uid", ["../../etc/x", "9" * 200, "", "1.2.é", "1.2\0.3"])
def test_a_hostile_uid_is_refused_and_the_association_goes_on(path, uid):
    with association(path.port) as opened:
        assert send(opened, ct(SOPInstanceUID="1.2.3"), sop_instance_uid=uid) == 0xA900
        assert send(opened, ct()) == 0x0000
    assert len(path.files()) == 1


def test_what_cannot_be_read_is_refused_and_the_association_goes_on(path):
    whole = encoded(ct(SOPInstanceUID="1.2.3"))
    with association(path.port) as opened:
        assert send(opened, whole[: len(whole) // 2], sop_instance_uid="1.2.3") == 0xC000
        assert send(opened, b"this is no DICOM at all", sop_instance_uid="1.2.3") == 0xC000
        assert send(opened, ct(SOPInstanceUID=None), sop_instance_uid="1.2.3") == 0xA900
        assert send(opened, ct()) == 0x0000
    assert len(path.files()) == 1


def test_an_echo_between_objects_is_answered(path):
    contexts = [(CTImageStorage, ExplicitVRLittleEndian), (VERIFICATION, ImplicitVRLittleEndian)]
    with association(path.port, contexts=contexts) as opened:
        for _ in range(3):
            assert send(opened, ct()) == 0x0000
            assert opened.send_c_echo().Status == 0x0000
    assert len(path.files()) == 3


def test_a_service_that_is_not_offered_ends_the_association_and_keeps_what_came(path):
    with association(path.port) as opened:
        assert send(opened, ct()) == 0x0000
        # Command and data set in a context that was not accepted.
        primitive = P_DATA()
        primitive.presentation_data_value_list = [[99, b"\x03" + struct.pack("<HHLL", 0, 0, 4, 0)]]
        opened.dul.send_pdu(primitive)
        wait_until(lambda: path.ended)
        opened.is_established = False
    ((_, complete),) = path.ended
    assert not complete
    assert len(path.files()) == 1


def test_a_message_that_is_no_object_cannot_fill_the_memory(tmp_path):
    path = Path(tmp_path, is_fast=True)
    try:
        contexts = [(VERIFICATION, ImplicitVRLittleEndian), (CTImageStorage, ExplicitVRLittleEndian)]
        with association(path.port, contexts=contexts) as opened:
            assert send(opened, ct()) == 0x0000
            connection = opened.dul.socket.socket
            context_id = opened.accepted_contexts[0].context_id
            echo = struct.pack("<HHLH", 0, 0x0100, 2, 0x0030) + struct.pack("<HHLH", 0, 0x0800, 2, 0x0000)
            head = struct.pack(">BxLLBB", 0x04, len(echo) + 6, len(echo) + 2, context_id, 0x03)
            endless = struct.pack(">BxLLBB", 0x04, 200_006, 200_002, context_id, 0x00) + b"\0" * 200_000
            sent = 0
            with suppress(OSError):
                connection.sendall(head + echo)
                for _ in range(400):
                    connection.sendall(endless)
                    sent += 1
            assert sent < 400
            wait_until(lambda: path.ended)
            opened.is_established = False
        assert [complete for _, complete in path.ended] == [False]
    finally:
        path.receiver.stop(grace_seconds=0)


def test_many_small_pdus_are_one_object(path):
    with association(path.port) as opened:
        opened.acceptor.primitive.maximum_length_received = 200
        dataset = ct(PixelData=os.urandom(20_000))
        assert send(opened, dataset) == 0x0000
    assert path.files() == {f"{dataset.SOPInstanceUID}.dcm": as_file(received(dataset))}


@pytest.mark.parametrize("durability", ["instance", "association", "none"])
@pytest.mark.parametrize("is_fast", [True, False], ids=["fast", "stock"])
def test_whoever_sends_on_before_the_answer_is_answered_all_the_same(tmp_path, is_fast, durability):
    path = Path(tmp_path, is_fast=is_fast, durability=durability)
    try:
        datasets = [ct(PixelData=os.urandom(size)) for size in (32, 200_000) * 20]
        told = dict(answers(path.port, prepared(*datasets)))
        assert told == dict.fromkeys(range(40), 0x0000)
        expected = [received(dataset) for dataset in datasets]
        assert path.files() == {f"{one.sop_instance_uid}.dcm": as_file(one) for one in expected}
        assert [complete for _, complete in path.ended] == [True]
    finally:
        path.receiver.stop(grace_seconds=0)


@pytest.mark.dcmtk
@pytest.mark.parametrize(
    ("name", "propose"),
    [("JPEG2000.dcm", "-xw"), ("image_dfl.dcm", "-xd"), ("MR_small_RLE.dcm", "-xr"), ("rtplan.dcm", "-xi")],
)
def test_dcmtk_sends_what_it_has(path, name, propose):
    if shutil.which("storescu") is None:
        if os.environ.get("CI"):
            pytest.fail("storescu of DCMTK is not installed")
        pytest.skip("storescu of DCMTK is not installed")
    source = get_testdata_file(name, download=False)
    command = ["storescu", propose, "-R", "localhost", str(path.port), str(source)]
    sent = subprocess.run(
        command, env={**os.environ, "TCP_NODELAY": "1"}, capture_output=True, text=True, timeout=60, check=False
    )
    assert sent.returncode == 0, sent.stderr
    assert len(path.files()) == 1
