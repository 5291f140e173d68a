from __future__ import annotations

import os
from pathlib import Path
from types import SimpleNamespace

import pytest

from flows_engine.disk_reserve import DiskReserve

_GIB = 2**30


def _disk(monkeypatch: pytest.MonkeyPatch, *, free_bytes: int, files: int = 0, free_files: int = 0) -> None:
    found = SimpleNamespace(f_bavail=free_bytes // 4096, f_frsize=4096, f_files=files, f_favail=free_files)
    monkeypatch.setattr(os, "statvfs", lambda _: found)


def test_what_is_left_is_held_against_what_is_to_stay_free(monkeypatch: pytest.MonkeyPatch) -> None:
    disk = DiskReserve(folder=Path("/data"), reserve_bytes=_GIB)
    _disk(monkeypatch, free_bytes=_GIB)
    assert disk.shortage() == ""
    _disk(monkeypatch, free_bytes=_GIB - 4096 * 256)
    assert disk.shortage() == (
        "only 1023.0 MiB are free on the disk of /data, less than DISK_RESERVE_BYTES (1024.0 MiB)"
    )


@pytest.mark.parametrize(
    ("files", "free_files", "is_short"),
    [(0, 0, False), (10_000_000, 99_999, True), (10_000_000, 100_000, False), (1000, 9, True), (1000, 10, False)],
)
def test_a_disk_may_run_out_of_files(
    monkeypatch: pytest.MonkeyPatch, files: int, free_files: int, is_short: bool
) -> None:
    _disk(monkeypatch, free_bytes=_GIB, files=files, free_files=free_files)
    shortage = DiskReserve(folder=Path("/data"), reserve_bytes=1).shortage()
    assert shortage == (f"the disk of /data has room for {free_files} more files only" if is_short else "")


def test_nothing_is_said_where_nothing_is_asked_or_nobody_can_tell(tmp_path: Path) -> None:
    assert DiskReserve(folder=tmp_path, reserve_bytes=0).shortage() == ""
    assert DiskReserve(folder=tmp_path / "gone", reserve_bytes=2**60).shortage() == ""
    assert DiskReserve(folder=tmp_path, reserve_bytes=2**60).shortage().startswith("only ")
