"""Folders as a stranger would fill them."""

from __future__ import annotations

import os
import resource
import socket
import stat
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from flows_engine.folder_tree import copy_tree, remove_tree

_TIB = 2**40


def _deep(folder: Path, *, levels: int, name: str = "d") -> None:
    """Make folders in each other, deeper than a path can say, some with a file, a fifo and a link to the root."""
    current = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    for level in range(levels):
        if level < 3 or level == levels - 1:
            os.close(os.open("file", os.O_CREAT | os.O_WRONLY, dir_fd=current))
            os.mkfifo("fifo", dir_fd=current)
            os.symlink("/", "link", dir_fd=current)
        os.mkdir(name, dir_fd=current)
        inner = os.open(name, os.O_RDONLY | os.O_DIRECTORY, dir_fd=current)
        os.close(current)
        current = inner
    os.close(current)


@pytest.fixture
def few_open_files() -> Iterator[None]:
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (len(list(Path("/proc/self/fd").iterdir())) + 30, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, before)


@pytest.mark.usefixtures("few_open_files")
@pytest.mark.parametrize(("levels", "name"), [(2500, "d"), (100, "n" * 255)])
def test_what_is_deeper_than_any_path_is_removed(tmp_path: Path, levels: int, name: str) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    _deep(folder, levels=levels, name=name)
    remove_tree(folder)
    assert list(tmp_path.iterdir()) == []


def test_what_is_removed_is_no_more_than_the_folder(tmp_path: Path) -> None:
    kept = tmp_path / "kept"
    (kept / "deep").mkdir(parents=True)
    (kept / "deep" / "file").touch()
    folder = tmp_path / "folder"
    (folder / "a" / "b" / "moved-0").mkdir(parents=True)
    (folder / "moved-0").write_text("in the way")
    (folder / "moved-1" / "c").mkdir(parents=True)
    (folder / "moved-1" / "c" / "file").touch()
    (folder / "a" / "b" / "out").symlink_to(kept)
    (folder / "a" / "b" / "file").symlink_to(kept / "deep" / "file")
    (folder / "a" / "b").chmod(0)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(folder / "socket"))
    remove_tree(folder)
    assert [str(path.relative_to(tmp_path)) for path in sorted(tmp_path.rglob("*"))] == [
        "kept",
        "kept/deep",
        "kept/deep/file",
    ]
    remove_tree(folder)
    folder.symlink_to(kept)
    remove_tree(folder)
    assert (kept / "deep" / "file").exists()
    assert not folder.is_symlink()


def test_a_copy_takes_no_more_room_than_what_is_there(tmp_path: Path) -> None:
    source, target = tmp_path / "source", tmp_path / "target"
    source.mkdir()
    with (source / "sparse").open("wb") as file:
        file.truncate(_TIB)
        file.seek(_TIB // 2)
        file.write(b"in the middle")
    (source / "hole").touch()
    os.truncate(source / "hole", 2**20)
    (source / "whole").write_bytes(os.urandom(3_000_001))
    (source / "empty").touch()
    started = time.monotonic()
    copy_tree(source, target)
    assert time.monotonic() - started < 5
    assert [(path.name, path.stat().st_size) for path in sorted(target.iterdir())] == [
        ("empty", 0),
        ("hole", 2**20),
        ("sparse", _TIB),
        ("whole", 3_000_001),
    ]
    assert (target / "whole").read_bytes() == (source / "whole").read_bytes()
    assert (target / "sparse").stat().st_blocks * 512 < 2**20
    with (target / "sparse").open("rb") as file:
        file.seek(_TIB // 2 - 1)
        assert file.read(15) == b"\0in the middle\0"


def test_a_copy_is_for_anyone_to_write_to_and_holds_nothing_that_could_block(tmp_path: Path) -> None:
    source, target = tmp_path / "source", tmp_path / "target"
    source.mkdir()
    _deep(source, levels=3)
    before = os.umask(0o077)
    try:
        copy_tree(source, target)
    finally:
        os.umask(before)
    found = {str(path.relative_to(target)): stat.S_IMODE(path.lstat().st_mode) for path in target.rglob("*")}
    folders = {"d": 0o777, "d/d": 0o777, "d/d/d": 0o777}
    assert found == {**folders, "file": 0o666, "d/file": 0o666, "d/d/file": 0o666}


def test_a_copy_of_what_no_path_can_name_comes_to_an_end(tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    _deep(source, levels=40, name="n" * 90)
    copy_tree(source, tmp_path / "target")
    remove_tree(source)
    source.mkdir()
    _deep(source, levels=50, name="n" * 90)
    with pytest.raises(OSError, match="File name too long"):
        copy_tree(source, tmp_path / "another")
    for left in tmp_path.iterdir():
        remove_tree(left)
