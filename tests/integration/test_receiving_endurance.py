"""What a gateway takes over many associations, many idle ones, large objects, slow peers, and a power cut.

``ASSOCIATIONS`` says how many follow one another, ``LARGE_OBJECT_MIB`` how large the large object is.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import struct
import subprocess
import time
from pathlib import Path

import pytest
from pydicom import dcmread
from pydicom.data import get_testdata_files
from pydicom.misc import is_dicom
from pydicom.uid import ExplicitVRLittleEndian

from dicom_gateway import durable_files
from dicom_gateway.reception import Reception
from dicom_gateway.spool import Spool
from tests.benchmarks import raw_sender
from tests.fakes.instances import as_file, ct, received
from tests.fakes.pipelining_scu import prepared
from tests.fakes.store_scu import association, send
from tests.unit.gateway.test_reception import ORIGIN

ASSOCIATIONS = int(os.environ.get("ASSOCIATIONS", "150"))
LARGE_OBJECT_MIB = int(os.environ.get("LARGE_OBJECT_MIB", "200"))


def wait_until(condition, *, seconds=30.0):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.01)


def send_raw(port, study):
    opened = raw_sender.Association(study, port=port, called_ae_title="STORESCP")
    opened.send(raw_sender.encode(study, opened.fragment_bytes))
    opened.release()


def test_associations_one_after_another_leave_nothing_behind(make_receiving):
    receiving = make_receiving(durability="none")

    def held():
        process = receiving.process
        return process.num_fds(), process.num_threads(), process.memory_info().rss

    for count in range(1, 21):
        send_raw(receiving.port, prepared(ct()))
        wait_until(lambda count=count: len(receiving.ended) == count)
    wait_until(lambda: receiving.receiver.open_connections == 0)
    descriptors, threads, memory = held()
    for _ in range(ASSOCIATIONS):
        send_raw(receiving.port, prepared(ct()))
    wait_until(lambda: len(receiving.ended) == 20 + ASSOCIATIONS)
    wait_until(lambda: held()[:2] <= (descriptors, threads))
    assert held()[2] - memory < 8 * 2**20
    assert all(complete for _, complete in receiving.ended)


def test_idle_associations_cost_next_to_nothing(make_receiving):
    receiving = make_receiving(durability="none")
    study = prepared(ct())
    idle = [raw_sender.Association(study, port=receiving.port, called_ae_title="STORESCP") for _ in range(64)]
    wait_until(lambda: receiving.receiver.open_connections == 64)
    send_raw(receiving.port, study)
    before = sum(receiving.process.cpu_times()[:2])
    time.sleep(2.0)  # the cost of doing nothing can be measured only while nothing is done
    used = sum(receiving.process.cpu_times()[:2]) - before
    # pynetdicom's own loops would ask 128,000 times a second, and take all of a core.
    assert used < 0.5
    for association_ in idle:
        association_.release()
    wait_until(lambda: receiving.receiver.open_connections == 0)


def test_an_object_of_any_size_takes_no_memory(make_receiving):
    receiving = make_receiving()
    study = prepared(ct(PixelData=b"\0\0"))
    (instance,) = study.instances
    pixel_bytes = LARGE_OBJECT_MIB * 2**20
    head = instance.data_set[:-14] + b"\xe0\x7f\x10\0OW\0\0" + struct.pack("<L", pixel_bytes)
    opened = raw_sender.Association(study, port=receiving.port, called_ae_title="STORESCP")
    before = receiving.process.memory_info().rss
    opened._connection.sendall(raw_sender._pdv(instance.command, is_command=True, is_last=True))
    opened._connection.sendall(raw_sender._pdv(head, is_command=False, is_last=False))
    block = os.urandom(250_000)
    sent, peak = 0, 0
    while sent < pixel_bytes:
        piece = block[: min(len(block), pixel_bytes - sent)]
        sent += len(piece)
        opened._connection.sendall(raw_sender._pdv(piece, is_command=False, is_last=sent == pixel_bytes))
        peak = max(peak, receiving.process.memory_info().rss)
    opened.send([])
    kind, answer = opened._read_pdu()
    assert (kind, raw_sender._status(answer)) == (0x04, 0)
    opened.release()
    # What is mapped to be looked at counts as memory of the process, and is the page cache's.
    shared = receiving.process.memory_full_info()
    assert peak - before < 16 * 2**20
    assert shared.uss - before < 16 * 2**20
    (path,) = receiving.files().values()
    assert path.stat().st_size > pixel_bytes
    wait_until(lambda: receiving.ended)
    (study,) = receiving.spool.collect(receiving.ended[0][0], complete=True)
    assert not study.problem
    assert study.record.size_bytes > pixel_bytes


def test_who_connects_and_says_nothing_is_let_go(tmp_path, monkeypatch):
    from dicom_gateway import serving as serving_module
    from dicom_gateway.entity import make_entity

    monkeypatch.setattr(serving_module, "NEGOTIATION_SECONDS", 0.3)
    serving = serving_module.Serving(make_entity("STORESCP"), receptions=None)
    ended = []
    with socket.create_server(("127.0.0.1", 0)) as listening:
        for said in (b"", b"\x01\0\0", struct.pack(">BxL", 1, 100_000) + b"x" * 500, struct.pack(">BxL", 1, 2**31)):
            with socket.create_connection(listening.getsockname()) as peer:
                connection, _ = listening.accept()
                serving.serve(connection, is_secure=False, on_end=lambda: ended.append(1))
                peer.sendall(said)
                peer.settimeout(15)
                with contextlib.suppress(ConnectionResetError):
                    assert peer.recv(1) == b""
    wait_until(lambda: len(ended) == 4)


def test_every_file_that_pydicom_ships_is_stored_bit_for_bit_or_refused(make_receiving):
    receiving = make_receiving(durability="none")
    paths = [Path(name) for name in get_testdata_files() if Path(name).is_file() and is_dicom(name)]
    expected, refused = {}, []
    for path in paths:
        try:
            header = dcmread(path, stop_before_pixels=True, force=True)
            sop_class, uid, syntax = header.SOPClassUID, header.SOPInstanceUID, header.file_meta.TransferSyntaxUID
        except (AttributeError, ValueError):
            continue
        content = path.read_bytes()
        data_set = content[144 + int.from_bytes(content[140:144], "little") :]
        if content[128:132] != b"DICM" or not uid or "Storage" not in sop_class.name or not data_set:
            continue
        with association(receiving.port, contexts=[(sop_class, syntax)]) as opened:
            status = send(opened, data_set, sop_instance_uid=uid, sop_class_uid=sop_class, transfer_syntax_uid=syntax)
        if status == 0x0000:
            expected.setdefault(f"{uid}.dcm", set()).add(data_set)
        else:
            refused.append(path.name)
    assert len(expected) > 40
    assert len(refused) < 5, refused
    stored = {}
    for path in receiving.spool.root.rglob("*.dcm"):
        content = path.read_bytes()
        stored.setdefault(path.name, set()).add(content[144 + int.from_bytes(content[140:144], "little") :])
    assert stored == expected


@pytest.mark.dcmtk
def test_dcmsend_sends_a_folder(make_receiving, tmp_path_factory):
    if shutil.which("dcmsend") is None:
        if os.environ.get("CI"):
            pytest.fail("dcmsend of DCMTK is not installed")
        pytest.skip("dcmsend of DCMTK is not installed")
    folder = tmp_path_factory.mktemp("sent")
    instances = [received(ct(InstanceNumber=number)) for number in range(5)]
    for instance in instances:
        (folder / f"{instance.sop_instance_uid}.dcm").write_bytes(as_file(instance))
    receiving = make_receiving()
    command = ["dcmsend", "localhost", str(receiving.port), "+sd", str(folder)]
    sent = subprocess.run(
        command, env={**os.environ, "TCP_NODELAY": "1"}, capture_output=True, text=True, timeout=60, check=False
    )
    assert sent.returncode == 0, sent.stderr
    stored = {name: path.read_bytes() for name, path in receiving.files().items()}
    assert stored == {f"{one.sop_instance_uid}.dcm": as_file(one) for one in instances}


class PowerCut:
    """What a power cut would leave of a folder: only what was forced onto the disk.

    A file is left with the content that it had when it was last synced, under the names that its folder had when that
    was last synced; syncfs forces everything. This is the worst that POSIX allows: a real file system keeps more.
    """

    def __init__(self, root, monkeypatch):
        self.root = root
        self.contents = {}
        self.names = {}
        for name in ("fsync", "fdatasync"):
            monkeypatch.setattr(os, name, self._noting(getattr(os, name)))
        real = durable_files.sync_file_system
        monkeypatch.setattr(
            durable_files, "sync_file_system", lambda descriptor: (self._note_everything(), real(descriptor))
        )

    def _noting(self, real):
        def call(descriptor):
            self._note(Path(f"/proc/self/fd/{descriptor}").resolve())
            return real(descriptor)

        return call

    def _note(self, path):
        number = path.stat().st_ino
        if path.is_dir():
            self.names[number] = {entry.name: (entry.stat().st_ino, entry.is_dir()) for entry in path.iterdir()}
        else:
            self.contents[number] = (path.read_bytes(), path.stat().st_mode)

    def _note_everything(self):
        for path in [self.root, *self.root.rglob("*")]:
            self._note(path)

    def leave(self, target):
        """Make what is left at ``target``."""
        self._leave(self.root.stat().st_ino, target)

    def _leave(self, folder, target):
        target.mkdir()
        for name, (number, is_folder) in self.names.get(folder, {}).items():
            if is_folder:
                self._leave(number, target / name)
            elif number in self.contents:
                content, mode = self.contents[number]
                (target / name).write_bytes(content)
                (target / name).chmod(mode)
            else:
                (target / name).touch(mode=0o644)


@pytest.mark.parametrize(
    ("durability", "is_sealed", "kept"),
    [
        ("instance", False, 4),
        ("instance", True, 4),
        ("association", True, 4),
        ("association", False, 0),
        ("none", True, 0),
    ],
)
def test_a_power_cut_leaves_what_was_promised(tmp_path, monkeypatch, durability, is_sealed, kept):
    # Of a file system that promises more, test_power_cut makes sure on the real one.
    monkeypatch.setattr(durable_files, "syncs_names_with_files", lambda _folder: False)
    root = tmp_path / "spool"
    root.mkdir()
    power = PowerCut(root, monkeypatch)
    reception = Reception(root / "r", origin=ORIGIN, durability=durability)
    acknowledged = []
    for number in range(4):
        instance = received(ct(InstanceNumber=number, PixelData=os.urandom(3000)))
        reception.store(instance)
        acknowledged.append(instance)
    half = reception.begin(sop_class_uid="1.2", sop_instance_uid="1.2.3", transfer_syntax_uid=ExplicitVRLittleEndian)
    half.write(memoryview(b"half"))
    if is_sealed:
        half.discard()
        reception.seal()
    power.leave(tmp_path / "left")
    monkeypatch.undo()

    left = Spool(tmp_path / "left")
    studies = left.collect("r", complete=left.is_released("r"))
    assert sum(study.record.instance_count for study in studies if not study.problem) == kept
    if kept:
        (study,) = studies
        stored = {path.read_bytes() for path in study.folder.rglob("*.dcm")}
        assert stored == {as_file(instance) for instance in acknowledged}
        assert study.record.complete is is_sealed
        assert study.record.sender.ae_title == ORIGIN.sender.ae_title


def test_orthanc_sends_what_it_has(make_receiving, tmp_path_factory):
    if shutil.which("Orthanc") is None:
        pytest.skip("Orthanc is not installed: deployments/host/orthanc.sh does that")
    import httpx

    from tests.benchmarks.ingest import _orthanc

    receiving = make_receiving()
    instances = [received(ct(InstanceNumber=number)) for number in range(3)]
    with _orthanc(tmp_path_factory.mktemp("orthanc") / "o", sync=False) as peer:
        configuration = (peer.store / "orthanc.json").read_text()
        http = int(configuration.split('"HttpPort": ')[1].split(",")[0])
        with httpx.Client(base_url=f"http://127.0.0.1:{http}", timeout=30) as orthanc:
            stored = [orthanc.post("/instances", content=as_file(one)).json()["ID"] for one in instances]
            orthanc.put("/modalities/gateway", json=["STORESCP", "127.0.0.1", receiving.port]).raise_for_status()
            orthanc.post("/modalities/gateway/store", json=stored).raise_for_status()
    assert set(receiving.files()) == {f"{one.sop_instance_uid}.dcm" for one in instances}
