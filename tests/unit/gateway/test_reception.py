from __future__ import annotations

import os
import stat
from datetime import UTC, datetime
from pathlib import Path

import pytest
from pydicom.uid import ExplicitVRBigEndian, ExplicitVRLittleEndian, ImplicitVRLittleEndian

from dicom_gateway import durable_files
from dicom_gateway.disk_room import DiskRoom
from dicom_gateway.errors import InstanceRefusedError, SpoolFullError
from dicom_gateway.reception import Origin, Reception
from flows_engine.handoff.run_request import Sender
from tests.fakes.instances import as_file, ct, received

ORIGIN = Origin(
    sender=Sender(ae_title="PACS", host="10.0.0.1", port=1),
    called_ae_title="STORESCP",
    received_at=datetime(2024, 5, 6, tzinfo=UTC),
)


@pytest.fixture
def open_reception(tmp_path):
    """Return a maker of receptions."""
    opened = []

    def make(durability="instance"):
        opened.append(Reception(tmp_path / str(len(opened)), origin=ORIGIN, durability=durability))
        return opened[-1]

    yield make
    for reception in opened:
        reception.close()


@pytest.fixture
def synced(monkeypatch):
    """Return the list of what is forced onto the disk: the names, in order."""
    names = []

    def note(real):
        def call(descriptor):
            names.append(Path(f"/proc/self/fd/{descriptor}").readlink().name)
            return real(descriptor)

        return call

    for name in ("fsync", "fdatasync"):
        monkeypatch.setattr(os, name, note(getattr(os, name)))
    real = durable_files.sync_file_system
    monkeypatch.setattr(
        durable_files, "sync_file_system", lambda descriptor: (names.append("everything"), real(descriptor))
    )
    return names


def begun(reception, *, uid="1.2.3"):
    return reception.begin(sop_class_uid="1.2", sop_instance_uid=uid, transfer_syntax_uid=ExplicitVRLittleEndian)


@pytest.mark.parametrize(
    ("instance", "status"),
    [
        (received(ct(), sop_instance_uid="1.2.3"), 0xA900),
        (received(ct(SOPInstanceUID=None), sop_instance_uid="1.2.3"), 0xA900),
    ],
)
def test_a_uid_that_is_not_the_commands_is_refused_and_leaves_nothing(open_reception, tmp_path, instance, status):
    reception = open_reception()
    with pytest.raises(InstanceRefusedError) as caught:
        reception.store(instance)
    assert caught.value.status == status
    assert list(tmp_path.rglob("*.dcm")) == []


def test_half_an_object_is_refused_and_leaves_nothing(open_reception, tmp_path):
    whole = received(ct())
    half = whole.__class__(**{**vars(whole), "data_set": whole.data_set[: len(whole.data_set) // 2]})
    reception = open_reception()
    with pytest.raises(InstanceRefusedError) as caught:
        reception.store(half)
    assert caught.value.status == 0xC000
    assert list(tmp_path.rglob("*.dcm")) == []


@pytest.mark.parametrize("durability", ["association", "none"])
@pytest.mark.parametrize("syntax", [ExplicitVRLittleEndian, ImplicitVRLittleEndian, ExplicitVRBigEndian])
def test_without_a_sync_another_uid_than_the_commands_is_refused_all_the_same(open_reception, durability, syntax):
    reception = open_reception(durability)
    reception.store(received(ct(), transfer_syntax_uid=syntax))
    with pytest.raises(InstanceRefusedError) as caught:
        reception.store(received(ct(), sop_instance_uid="1.2.3", transfer_syntax_uid=syntax))
    assert caught.value.status == 0xA900


@pytest.mark.parametrize("durability", ["instance", "association", "none"])
def test_an_empty_data_set_is_refused(open_reception, tmp_path, durability):
    instance = received(ct())
    with pytest.raises(InstanceRefusedError) as caught:
        open_reception(durability).store(instance.__class__(**{**vars(instance), "data_set": b""}))
    assert caught.value.status == 0xC000
    assert list(tmp_path.rglob("*.dcm")) == []


def test_fragments_are_joined_in_their_file(open_reception, tmp_path):
    instance = received(ct(PixelData=os.urandom(300_000)))
    incoming = open_reception().begin(
        sop_class_uid=instance.sop_class_uid,
        sop_instance_uid=instance.sop_instance_uid,
        transfer_syntax_uid=instance.transfer_syntax_uid,
    )
    for start in range(0, len(instance.data_set), 7777):
        incoming.write(memoryview(instance.data_set)[start : start + 7777])
    (path,) = tmp_path.rglob("*.dcm")
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    incoming.commit()
    assert stat.S_IMODE(path.stat().st_mode) == 0o644
    assert path.read_bytes() == as_file(instance)


@pytest.mark.parametrize(("with_files", "forced"), [(False, ["incoming"]), (True, [])])
def test_every_instance_is_on_disk_before_its_success(open_reception, synced, monkeypatch, with_files, forced):
    monkeypatch.setattr(durable_files, "syncs_names_with_files", lambda _folder: with_files)
    reception = open_reception()
    reception.store(received(ct()))
    synced.clear()
    instance = received(ct())
    reception.store(instance)
    assert synced == [f"{instance.sop_instance_uid}.dcm", *forced]
    synced.clear()
    reception.seal()
    assert synced == [reception.id]


def test_an_association_is_on_disk_before_its_release(open_reception, synced):
    reception = open_reception("association")
    reception.store(received(ct()))
    synced.clear()
    reception.store(received(ct()))
    assert synced == []
    reception.seal()
    assert synced == ["everything", reception.id]


def test_without_durability_nothing_is_forced_onto_the_disk(open_reception, synced):
    reception = open_reception("none")
    reception.store(received(ct()))
    reception.seal()
    assert synced == []


def test_what_is_discarded_leaves_nothing(open_reception, tmp_path):
    incoming = begun(open_reception())
    incoming.write(memoryview(b"x" * 1000))
    for _ in range(2):
        incoming.discard()
    assert list(tmp_path.rglob("*.dcm")) == []


def test_a_disk_that_fails_at_the_last_moment_leaves_nothing(open_reception, tmp_path, monkeypatch):
    reception = open_reception()
    reception.store(received(ct()))

    def fail(_descriptor):
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(SpoolFullError, match="Input/output error"):
        reception.store(received(ct()))
    assert len(list(tmp_path.rglob("*.dcm"))) == 1


def several(reception, instances):
    """Begin and write several instances, none of which is committed."""
    incoming = []
    for instance in instances:
        incoming.append(
            reception.begin(
                sop_class_uid=instance.sop_class_uid,
                sop_instance_uid=instance.sop_instance_uid,
                transfer_syntax_uid=instance.transfer_syntax_uid,
            )
        )
        incoming[-1].write(memoryview(instance.data_set))
    return incoming


@pytest.mark.parametrize("durability", ["instance", "association", "none"])
def test_of_several_at_once_each_is_on_disk_before_its_success(open_reception, tmp_path, synced, durability):
    reception = open_reception(durability)
    reception.store(received(ct()))
    instances = [received(ct(PixelData=os.urandom(size))) for size in (32, 300_000, 32)]
    incoming = several(reception, instances)
    paths = [next(tmp_path.rglob(f"{instance.sop_instance_uid}.dcm")) for instance in instances]
    for one in incoming:
        one.end()
    assert [stat.S_IMODE(path.stat().st_mode) for path in paths] == [0o600] * 3
    synced.clear()
    for one in incoming:
        one.make_whole()
    assert [stat.S_IMODE(path.stat().st_mode) for path in paths] == [0o644] * 3
    for one, path in zip(incoming, paths, strict=True):
        synced.clear()
        one.commit()
        assert synced[:1] == ([path.name] if durability == "instance" else [])
    assert [path.read_bytes() for path in paths] == [as_file(instance) for instance in instances]


def test_what_is_on_disk_is_there_before_its_mode_says_that_it_is_whole(open_reception, monkeypatch):
    steps = []
    for module, name in ((durable_files, "begin_to_write"), (durable_files, "wait_until_written"), (os, "fchmod")):
        monkeypatch.setattr(module, name, lambda *_, name=name: steps.append(name))
    (incoming,) = several(open_reception(), [received(ct())])
    steps.clear()
    incoming.end()
    incoming.make_whole()
    assert steps == ["begin_to_write", "wait_until_written", "fchmod"]
    incoming.commit()
    assert len(steps) == 3


@pytest.mark.parametrize("step", ["begin_to_write", "wait_until_written", "fsync"])
def test_of_several_at_once_one_that_the_disk_does_not_take_leaves_nothing(open_reception, tmp_path, monkeypatch, step):
    reception = open_reception()
    incoming = several(reception, [received(ct()) for _ in range(3)])
    module = os if step == "fsync" else durable_files
    real, failing = getattr(module, step), incoming[1]._descriptor

    def fail(descriptor):
        if descriptor == failing:
            raise OSError(28, "No space left on device")
        return real(descriptor)

    monkeypatch.setattr(module, step, fail)
    failed = []
    for method in ("end", "make_whole", "commit"):
        for number, one in enumerate(incoming):
            try:
                if number not in failed:
                    getattr(one, method)()
            except SpoolFullError:
                failed.append(number)
    assert failed == [1]
    assert len(list(tmp_path.rglob("*.dcm"))) == 2


def test_of_several_at_once_one_that_cannot_be_read_is_refused_when_it_ends(open_reception, tmp_path):
    whole = received(ct())
    half = whole.__class__(**{**vars(whole), "data_set": whole.data_set[:-10]})
    (incoming,) = several(open_reception(), [half])
    with pytest.raises(InstanceRefusedError) as caught:
        incoming.end()
    assert caught.value.status == 0xC000
    assert list(tmp_path.rglob("*.dcm")) == []


def test_a_write_that_is_short_is_gone_on_with(open_reception, tmp_path, monkeypatch):
    instance = received(ct())
    real, real_vector = os.write, os.writev
    monkeypatch.setattr(os, "write", lambda descriptor, content: real(descriptor, content[:100]))
    for longest in (60, 450):
        monkeypatch.setattr(
            os,
            "writev",
            lambda descriptor, parts, longest=longest: real_vector(descriptor, [b"".join(parts)[:longest]]),
        )
        open_reception().store(instance)
    assert [path.read_bytes() for path in tmp_path.rglob("*.dcm")] == [as_file(instance)] * 2


def test_where_conflicts_are_rejected_only_the_very_same_may_come_again(tmp_path):
    reception = Reception(tmp_path / "r", origin=ORIGIN, durability="none", rejects_conflicts=True)
    first, other = (received(ct(SOPInstanceUID="1.2.3", SeriesDescription=text)) for text in "ab")
    reception.store(first)
    with pytest.raises(InstanceRefusedError) as caught:
        reception.store(other)
    assert caught.value.status == 0x0111
    reception.store(first)
    reception.close()
    assert {path.read_bytes() for path in tmp_path.rglob("*.dcm")} == {as_file(first)}


def test_nothing_begins_where_the_disk_has_no_room(tmp_path):
    room = DiskRoom(folder=tmp_path, reserve_bytes=2**60)
    reception = Reception(tmp_path / "r", origin=ORIGIN, durability="none", room=room)
    with pytest.raises(SpoolFullError):
        reception.store(received(ct()))
    assert list(tmp_path.iterdir()) == []
