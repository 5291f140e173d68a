from __future__ import annotations

import os
import socket
import time
from pathlib import Path

import pytest

from flows_engine.errors import WorkspaceError
from flows_engine.output_files import is_dicom, open_regular, output_files


def test_files_at_any_depth_sorted_whatever_their_names(tmp_path: Path) -> None:
    (tmp_path / "b" / "deep").mkdir(parents=True)
    names = ["a\nnewline", "b/deep/.hidden", "b/ä", os.fsdecode(b"b/\xff")]
    for name in names:
        (tmp_path / name).write_text("x")
    found = output_files(tmp_path)
    assert list(found.files) == sorted(Path(f"{tmp_path}/{name}") for name in names)
    assert found.skipped == {}


def test_nothing_but_regular_files_is_listed_and_no_link_is_followed(tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "secret").write_text("x")
    folder = tmp_path / "output"
    folder.mkdir()
    (folder / "out").symlink_to(outside)
    (folder / "etc").symlink_to("/etc/passwd")
    (folder / "loop").symlink_to(folder)
    os.mkfifo(folder / "fifo")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(folder / "socket"))
    (folder / "real").write_text("x")
    found = output_files(folder)
    assert found.files == (folder / "real",)
    assert found.skipped == {"symbolic link": 3, "fifo": 1, "socket": 1}


def test_very_many_folders_in_each_other_are_an_error(tmp_path: Path) -> None:
    deepest = tmp_path.joinpath(*["d"] * 250)
    deepest.mkdir(parents=True)
    (deepest / "file").touch()
    assert output_files(tmp_path).files == (deepest / "file",)
    (deepest / "d").mkdir()
    with pytest.raises(WorkspaceError, match="more than 250 folders in each other"):
        output_files(tmp_path)


def test_ten_thousand_files_are_quick(tmp_path: Path) -> None:
    for number in range(10_000):
        (tmp_path / f"{number}").touch()
    start = time.perf_counter()
    assert len(output_files(tmp_path).files) == 10_000
    assert time.perf_counter() - start < 5


def test_a_folder_that_is_not_there_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(WorkspaceError):
        output_files(tmp_path / "gone")


@pytest.mark.parametrize(
    ("content", "expected"),
    [(bytes(128) + b"DICM", True), (bytes(128) + b"DIC", False), (b"DICM", False), (b"", False)],
)
def test_dicom_is_told_by_its_preamble(tmp_path: Path, content: bytes, expected: bool) -> None:
    (tmp_path / "file").write_bytes(content)
    assert is_dicom(tmp_path / "file") is expected


def test_a_fifo_or_link_that_took_the_place_of_a_file_is_not_opened(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "link").symlink_to("/etc/passwd")
    for name in ("fifo", "link"):
        with pytest.raises(WorkspaceError):
            open_regular(tmp_path / name)
