from __future__ import annotations

import io
import os
import stat
import tarfile
import tracemalloc
from pathlib import Path

import pytest

from flows_engine.errors import WorkspaceError
from flows_engine.sent_archive import SentFolder, sent_archive


def sent(*folders: SentFolder) -> dict[str, tarfile.TarInfo]:
    data = io.BytesIO(b"".join(sent_archive(folders)))
    with tarfile.open(fileobj=data) as archive:
        return {info.name: info for info in archive}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "input" / "deep").mkdir(parents=True)
    (tmp_path / "input" / "deep" / "slice").write_bytes(b"pixels")
    (tmp_path / "input" / "deep" / "slice").chmod(0o600)
    (tmp_path / "input" / "deep").chmod(0o700)
    return tmp_path / "input"


def test_everyone_may_read_and_the_top_says_who_may_write(folder: Path) -> None:
    (folder / "deep" / "slice").chmod(0o4700)
    members = sent(
        SentFolder(source=folder, place=".x/0", is_writable=False),
        SentFolder(source=folder, place=".x/1", is_writable=True),
    )
    assert list(members) == [".x/0", ".x/0/deep", ".x/0/deep/slice", ".x/1", ".x/1/deep", ".x/1/deep/slice"]
    assert [info.mode for info in members.values()] == [0o755, 0o755, 0o744, 0o777, 0o755, 0o744]
    assert {(info.uid, info.gid, info.uname) for info in members.values()} == {(0, 0, "")}


def test_contents_and_names_of_any_kind_come_whole(tmp_path: Path) -> None:
    contents = {
        b"empty": b"",
        b"block": bytes(512),
        b"more": b"x" * 3_000_001,
        b"\xff" + b"n" * 200: b"1",
        b"line\nend": b"2",
    }
    for name, content in contents.items():
        (tmp_path / os.fsdecode(name)).write_bytes(content)
    data = io.BytesIO(b"".join(sent_archive([SentFolder(source=tmp_path, place="0", is_writable=False)])))
    with tarfile.open(fileobj=data) as archive:
        found = {os.fsencode(info.name): archive.extractfile(info) for info in archive if info.isfile()}
        assert {name.removeprefix(b"0/"): file.read() for name, file in found.items()} == contents


def test_links_are_sent_as_links_and_other_kinds_not_at_all(folder: Path) -> None:
    (folder / "away").symlink_to("/etc/passwd")
    os.mkfifo(folder / "fifo")
    members = sent(SentFolder(source=folder, place="0", is_writable=False))
    assert members["0/away"].issym()
    assert members["0/away"].linkname == "/etc/passwd"
    assert "0/fifo" not in members


def test_memory_is_bounded_whatever_the_size(tmp_path: Path) -> None:
    with (tmp_path / "huge").open("wb") as file:
        file.truncate(200_000_000)
    tracemalloc.start()
    try:
        size = sum(map(len, sent_archive([SentFolder(source=tmp_path, place="0", is_writable=False)])))
        assert tracemalloc.get_traced_memory()[1] < 8_000_000
    finally:
        tracemalloc.stop()
    assert size > 200_000_000


def test_small_files_do_not_become_small_pieces(tmp_path: Path) -> None:
    for number in range(500):
        (tmp_path / str(number)).write_bytes(b"x")
    pieces = list(sent_archive([SentFolder(source=tmp_path, place="0", is_writable=False)]))
    assert len(pieces) < 5


def test_a_file_that_shrinks_meanwhile_is_told(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.fstat

    def longer(descriptor: int) -> os.stat_result:
        status = real(descriptor)
        return (
            os.stat_result((*status[:6], status.st_size + 1, *status[7:])) if stat.S_ISREG(status.st_mode) else status
        )

    monkeypatch.setattr("flows_engine.sent_archive.os.fstat", longer)
    with pytest.raises(WorkspaceError, match="shorter"):
        sent(SentFolder(source=folder, place="0", is_writable=False))


def test_a_folder_that_is_gone_is_told(tmp_path: Path) -> None:
    with pytest.raises(WorkspaceError, match="No such file"):
        sent(SentFolder(source=tmp_path / "gone", place="0", is_writable=False))
