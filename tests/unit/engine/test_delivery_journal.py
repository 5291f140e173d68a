from __future__ import annotations

import os
from pathlib import Path

import pytest

from flows_engine.delivery_journal import DeliveryJournal


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "output"
    folder.mkdir()
    for name in ("a", "b", "c\nd"):
        (folder / name).write_text(name)
    (folder / os.fsdecode(b"\xff")).write_text("odd")
    return folder


def _files(folder: Path) -> tuple[Path, ...]:
    return tuple(sorted(folder.iterdir()))


def _journal(tmp_path: Path, folder: Path, destination: str = "A@b:1") -> DeliveryJournal:
    return DeliveryJournal(tmp_path / "deliveries" / "1.jsonl", folder=folder, destination=destination)


def test_what_was_added_is_not_missing_afterwards(tmp_path: Path, folder: Path) -> None:
    files = _files(folder)
    with _journal(tmp_path, folder) as journal:
        assert journal.missing(files) == files
        for file in files[1:]:
            journal.add(file)
    with _journal(tmp_path, folder) as journal:
        assert journal.missing(files) == files[:1]


def test_a_file_that_was_written_again_is_missing(tmp_path: Path, folder: Path) -> None:
    file = folder / "a"
    before = file.stat()
    with _journal(tmp_path, folder) as journal:
        journal.add(file)
    file.write_text("b")
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))
    with _journal(tmp_path, folder) as journal:
        assert journal.missing([file]) == (file,)


def test_another_destination_has_got_nothing(tmp_path: Path, folder: Path) -> None:
    with _journal(tmp_path, folder) as journal:
        journal.add(folder / "a")
    with _journal(tmp_path, folder, "OTHER@b:1") as journal:
        assert journal.missing([folder / "a"]) == (folder / "a",)


@pytest.mark.parametrize("torn", [b'["A@b:1", "b", 1', b"\xff\x00garbage", b"[]\n{}\n", b"\n\n"])
def test_a_torn_last_line_costs_itself_only(tmp_path: Path, folder: Path, torn: bytes) -> None:
    with _journal(tmp_path, folder) as journal:
        journal.add(folder / "a")
    with (tmp_path / "deliveries" / "1.jsonl").open("ab") as file:
        file.write(torn)
    with _journal(tmp_path, folder) as journal:
        assert journal.missing([folder / "a", folder / "b"]) == (folder / "b",)
        journal.add(folder / "b")
    with _journal(tmp_path, folder) as journal:
        assert journal.missing([folder / "a", folder / "b"]) == ()


def test_a_line_is_in_the_file_before_the_next_is_sent(tmp_path: Path, folder: Path) -> None:
    with _journal(tmp_path, folder) as journal:
        journal.add(folder / "a")
        with _journal(tmp_path, folder) as killed_and_restarted:
            assert killed_and_restarted.missing([folder / "a"]) == ()
