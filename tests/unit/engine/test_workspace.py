from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from flows_engine.errors import WorkspaceError
from flows_engine.workspace import Workspace


@pytest.fixture
def source(tmp_path: Path) -> Path:
    source = tmp_path / "input"
    (source / "deep").mkdir(parents=True)
    (source / "deep" / "slice").write_text("pixels")
    (source / "link").symlink_to("/etc/passwd")
    os.mkfifo(source / "fifo")
    return source


def test_the_input_is_the_source_itself_and_anyone_may_write_the_output(tmp_path: Path, source: Path) -> None:
    folders = Workspace(tmp_path / "run").prepare(0, source=source, copy_input=False)
    assert folders.input == source
    assert stat.S_IMODE(folders.output.stat().st_mode) == 0o777
    assert stat.S_IMODE((tmp_path / "run").stat().st_mode) == 0o700


def test_a_copied_input_holds_regular_files_that_anyone_may_write(tmp_path: Path, source: Path) -> None:
    copy = Workspace(tmp_path / "run").prepare(0, source=source, copy_input=True).input
    assert sorted(str(path.relative_to(copy)) for path in copy.rglob("*")) == ["deep", "deep/slice"]
    assert stat.S_IMODE((copy / "deep" / "slice").stat().st_mode) == 0o666
    (copy / "deep" / "slice").write_text("changed")
    assert (source / "deep" / "slice").read_text() == "pixels"


def test_a_killed_attempt_leaves_nothing_and_its_links_are_not_followed(tmp_path: Path, source: Path) -> None:
    workspace = Workspace(tmp_path / "run")
    left = workspace.prepare(0, source=source, copy_input=False).output
    locked = left / "locked"
    locked.mkdir()
    (locked / "file").write_text("x")
    locked.chmod(0)
    (left / "way out").symlink_to(source)
    fresh = workspace.prepare(0, source=source, copy_input=False).output
    assert list(fresh.iterdir()) == []
    assert (source / "deep" / "slice").exists()


def test_a_link_in_place_of_a_step_is_removed_and_not_what_it_names(tmp_path: Path, source: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "model-1").symlink_to(source)
    Workspace(tmp_path / "run").prepare(0, source=source, copy_input=False)
    assert (source / "deep" / "slice").exists()


def test_other_steps_are_left_alone(tmp_path: Path, source: Path) -> None:
    workspace = Workspace(tmp_path / "run")
    first = workspace.prepare(0, source=source, copy_input=False).output
    (first / "result").write_text("x")
    second = workspace.prepare(1, source=workspace.output(0), copy_input=False)
    assert second.input == first
    assert (first / "result").exists()


def test_a_source_that_is_gone_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(WorkspaceError, match=r"model 2 .*process the study again"):
        Workspace(tmp_path / "run").prepare(1, source=tmp_path / "gone", copy_input=False)


def test_the_next_model_may_read_what_this_one_kept_to_itself(tmp_path: Path, source: Path) -> None:
    workspace = Workspace(tmp_path / "run")
    output = workspace.prepare(0, source=source, copy_input=False).output
    (output / "private").mkdir(mode=0o700)
    (output / "private" / "file").write_text("x")
    (output / "private" / "file").chmod(0o600)
    target = tmp_path / "elsewhere"
    target.write_text("x")
    target.chmod(0o600)
    (output / "link").symlink_to(target)
    workspace.open_for_reading(0)
    assert stat.S_IMODE((output / "private").stat().st_mode) & 0o555 == 0o555
    assert stat.S_IMODE((output / "private" / "file").stat().st_mode) & 0o444 == 0o444
    assert stat.S_IMODE(target.stat().st_mode) == 0o600
