from __future__ import annotations

import ctypes
import errno
import os
import stat
import subprocess
from pathlib import Path

import pytest

from dicom_gateway import durable_files


def test_a_file_holds_all_parts_and_leaves_no_temporary_name(tmp_path):
    durable_files.write_file(tmp_path / "a", b"one", b"two", temporary=tmp_path / "t", mode=0o644)
    assert (tmp_path / "a").read_bytes() == b"onetwo"
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


def test_the_mode_does_not_depend_on_the_umask(tmp_path):
    before = os.umask(0o077)
    try:
        durable_files.write_file(tmp_path / "a", b"", temporary=tmp_path / "t", mode=0o644)
        durable_files.make_folder(tmp_path / "f", mode=0o755)
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "a").stat().st_mode) == 0o644
    assert stat.S_IMODE((tmp_path / "f").stat().st_mode) == 0o755


@pytest.mark.parametrize("failing", ["fsync", "write", "fchmod"])
def test_a_failure_leaves_nothing(tmp_path, monkeypatch, failing):
    def fail(*_arguments):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, failing, fail)
    with pytest.raises(OSError, match="No space"):
        durable_files.write_file(tmp_path / "a", b"one", temporary=tmp_path / "t", mode=0o644)
    assert list(tmp_path.iterdir()) == []


def test_a_name_that_could_not_be_made_durable_is_taken_back(tmp_path, monkeypatch):
    def fail(_folder):
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(durable_files, "sync_folder", fail)
    with pytest.raises(OSError, match="Input/output"):
        durable_files.write_file(tmp_path / "a", b"one", temporary=tmp_path / "t", mode=0o644)
    with pytest.raises(OSError, match="Input/output"):
        durable_files.make_folder(tmp_path / "f", mode=0o755)
    assert list(tmp_path.iterdir()) == []


def test_data_is_durable_before_its_name_and_the_name_before_the_return(tmp_path, monkeypatch):
    steps = []
    real = os.fsync
    monkeypatch.setattr(
        os, "fsync", lambda fd: (steps.append(sorted(path.name for path in tmp_path.iterdir())), real(fd))
    )
    durable_files.write_file(tmp_path / "a", b"one", temporary=tmp_path / "t", mode=0o644)
    assert steps == [["t"], ["a"]]


def test_a_folder_that_is_there_is_left_alone(tmp_path):
    (tmp_path / "f").mkdir(mode=0o700)
    durable_files.make_folder(tmp_path / "f", mode=0o755)
    assert stat.S_IMODE((tmp_path / "f").stat().st_mode) == 0o700


def test_folders_are_spread_where_the_file_system_can(tmp_path):
    durable_files.spread_folders(tmp_path)
    durable_files.spread_folders(tmp_path)
    durable_files.spread_folders(tmp_path / "gone")
    listed = subprocess.run(["lsattr", "-d", tmp_path], capture_output=True, text=True, check=False)
    kind = subprocess.run(["stat", "-f", "-c", "%T", tmp_path], capture_output=True, text=True, check=True).stdout
    if "ext" in kind and listed.returncode == 0:
        assert "T" in listed.stdout.split()[0]
    (tmp_path / "a").mkdir()


@pytest.mark.parametrize(
    ("mounts", "expected"),
    [
        (b"1 2 8:1 / / rw - ext4 /dev/sda1 rw\n%s 1 8:2 / /d rw - xfs /dev/sdb rw\n", True),
        (b"%s 1 0:5 / /d rw shared:3 - nfs4 nas:/d rw\n", False),
        (b"9 1 8:3 / /media/M\xfcller rw - vfat /dev/sdc rw\n%s 1 8:2 / /d rw - ext4 /dev/sdb rw\n", True),
        (b"9 1 8:3 / /d rw - ext4 /dev/sdc rw\n", False),
        (b"\n%s\n", False),
        (None, False),
    ],
)
def test_names_are_left_to_files_where_the_file_system_is_known(tmp_path, monkeypatch, mounts, expected):
    folder = os.open(tmp_path, os.O_RDONLY)
    number = str(folder)

    def read_bytes(path):
        if path.name == "mountinfo":
            if mounts is None:
                raise FileNotFoundError(path)
            return mounts.replace(b"%s", b"77")
        assert path == Path("/proc/self/fdinfo", number)
        return b"pos:\t0\nflags:\t02\nmnt_id:\t77\n"

    with monkeypatch.context() as system:
        system.setattr(Path, "read_bytes", read_bytes)
        assert durable_files.syncs_names_with_files(folder) is expected
    os.close(folder)


@pytest.mark.parametrize("write_out", [durable_files.begin_to_write, durable_files.wait_until_written])
def test_what_cannot_be_written_out_is_told(tmp_path, write_out):
    with (tmp_path / "a").open("wb", buffering=0) as file:
        file.write(b"abc")
        write_out(file.fileno())
    closed = os.dup(0)
    os.close(closed)
    with pytest.raises(OSError, match="Bad file descriptor"):
        write_out(closed)


def test_a_system_that_cannot_write_out_early_leaves_that_to_the_sync(tmp_path, monkeypatch):
    def refuse(*_arguments):
        ctypes.set_errno(errno.ENOSYS)
        return -1

    monkeypatch.setattr(durable_files, "_sync_file_range", refuse)
    with (tmp_path / "a").open("wb") as file:
        durable_files.begin_to_write(file.fileno())
        durable_files.wait_until_written(file.fileno())
