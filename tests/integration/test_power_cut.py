"""Real file systems after a power cut: what their disk had got by then is mounted again, and looked through.

The disk is a file behind a loop device. What the file system wrote out is in it; what it still had in memory is not,
and a copy of the file is the disk after the cut. Its journal is replayed when that is mounted.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from dicom_gateway import durable_files
from dicom_gateway.reception import Reception
from dicom_gateway.spool import Spool
from tests.fakes.instances import as_file, ct, received
from tests.unit.gateway.test_reception import ORIGIN, several

pytestmark = pytest.mark.loop

INSTANCES = 30
AT_ONCE = 8
# Smaller ones are refused by the tools that make them.
SIZES_MIB = {"ext4": 32, "ext2": 32, "xfs": 320, "btrfs": 128}
SECOND_MOUNT = {"xfs": "loop,nouuid"}


@pytest.fixture(params=SIZES_MIB)
def disk(request, tmp_path) -> Iterator[Disk]:
    with Disk(request.param, tmp_path) as made:
        yield made


class Disk:
    """A disk with a file system on it, mounted at ``folder``."""

    def __init__(self, kind: str, place: Path) -> None:
        self.kind = kind
        self._image = place / "image"
        self._place = place
        self._mounted = contextlib.ExitStack()

    def __enter__(self) -> Disk:
        with self._image.open("wb") as image:
            image.truncate(SIZES_MIB[self.kind] * 1024 * 1024)
        subprocess.run([f"mkfs.{self.kind}", "-q", self._image], check=True, capture_output=True)
        self.folder = self._mount(self._image, "disk", options="loop")
        return self

    def __exit__(self, *_: object) -> None:
        self._mounted.close()

    def after_a_power_cut(self) -> Path:
        """Return where the disk is mounted that a power cut at this moment would leave."""
        left = self._place / "left-image"
        subprocess.run(["cp", "--sparse=always", self._image, left], check=True)
        if self.kind == "ext2":  # it has no journal
            subprocess.run(["e2fsck", "-fy", left], check=False, capture_output=True)
        return self._mount(left, "left", options=SECOND_MOUNT.get(self.kind, "loop"))

    def _mount(self, image: Path, name: str, *, options: str) -> Path:
        folder = self._place / name
        folder.mkdir()
        subprocess.run(["mount", "-o", options, image, folder], check=True, capture_output=True)
        self._mounted.callback(subprocess.run, ["umount", folder], check=True)
        return folder


@pytest.mark.parametrize("durability", ["instance", "none"])
def test_what_was_acknowledged_is_still_there(disk, durability):
    root = disk.folder / "spool"
    root.mkdir()
    subprocess.run(["sync", "--file-system", root], check=True)
    reception = Reception(root / "r", origin=ORIGIN, durability=durability)
    acknowledged = []
    for number in range(INSTANCES):
        instance = received(ct(InstanceNumber=number, PixelData=os.urandom(3000 + 20_000 * (number % 2))))
        reception.store(instance)
        acknowledged.append(as_file(instance))
    left = disk.after_a_power_cut()
    reception.close()

    studies = Spool(left / "spool").collect("r", complete=False)
    stored = [path.read_bytes() for study in studies for path in study.folder.rglob("*.dcm")]
    if durability == "instance":
        assert sorted(stored) == sorted(acknowledged)
        assert not any(study.problem for study in studies)
    else:
        # That this way of cutting the power does lose what was not forced onto the disk.
        assert len(stored) < INSTANCES


def test_what_was_acknowledged_of_several_at_once_is_still_there(disk):
    root = disk.folder / "spool"
    root.mkdir()
    subprocess.run(["sync", "--file-system", root], check=True)
    reception = Reception(root / "r", origin=ORIGIN, durability="instance")
    instances = [received(ct(PixelData=os.urandom(3000 + 20_000 * (number % 2)))) for number in range(INSTANCES)]
    acknowledged = []
    for start in range(0, INSTANCES, AT_ONCE):
        together = several(reception, instances[start : start + AT_ONCE])
        for step in ("end", "make_whole"):
            for incoming in together:
                getattr(incoming, step)()
        # Of the last, only the first is acknowledged before the power is cut.
        for incoming in together if start + AT_ONCE < INSTANCES else together[:1]:
            incoming.commit()
            acknowledged.append(as_file(instances[len(acknowledged)]))
    left = disk.after_a_power_cut()
    for incoming in together[1:]:
        incoming.discard()
    reception.close()

    studies = Spool(left / "spool").collect("r", complete=False)
    stored = [path.read_bytes() for study in studies for path in study.folder.rglob("*.dcm")]
    assert set(acknowledged) <= set(stored) <= set(map(as_file, instances))
    assert not any(study.problem for study in studies)


@pytest.mark.parametrize("disk", sorted(SIZES_MIB.keys() - {"ext2"}), indirect=True)
def test_what_says_that_it_is_whole_is_whole_though_nobody_was_told_yet(disk, monkeypatch):
    """The power is cut once a file has the mode of a whole one, and another file's sync is over, but not its own.

    With ext2, what is on the disk of one file has nothing to do with the sync of another.
    """
    root = disk.folder / "spool"
    root.mkdir()
    subprocess.run(["sync", "--file-system", root], check=True)
    one, other = (Reception(root / name, origin=ORIGIN, durability="instance") for name in ("one", "other"))
    other.store(received(ct()))
    instance = received(ct(PixelData=os.urandom(2_000_000)))
    (incoming,) = several(one, [instance])
    is_marked, may_go_on, sync = threading.Event(), threading.Event(), os.fsync

    def wait_with_its_own(descriptor):
        if descriptor == incoming._descriptor:
            is_marked.set()
            assert may_go_on.wait(60)
        sync(descriptor)

    monkeypatch.setattr(os, "fsync", wait_with_its_own)
    committing = threading.Thread(target=incoming.commit)
    committing.start()
    assert is_marked.wait(60)
    other.store(received(ct()))
    left = disk.after_a_power_cut()
    may_go_on.set()
    committing.join()
    one.close()
    other.close()

    studies = list(Spool(left / "spool").collect("one", complete=False))
    assert not any(study.problem for study in studies)
    stored = [path.read_bytes() for study in studies for path in study.folder.rglob("*.dcm")]
    assert stored in ([], [as_file(instance)])


def test_names_are_left_to_files_only_where_that_is_known_to_do(disk):
    with contextlib.closing(Reception(disk.folder / "r", origin=ORIGIN, durability="instance")) as reception:
        reception.store(received(ct()))
        descriptor = os.open(disk.folder / "r" / "incoming", os.O_RDONLY)
        try:
            assert durable_files.syncs_names_with_files(descriptor) is (disk.kind != "ext2")
        finally:
            os.close(descriptor)
