from __future__ import annotations

import errno
import os
import stat
from pathlib import Path

import pytest

from flows_engine.errors import NoSpaceError, WorkspaceError
from flows_engine.workspace import StepFolders, Workspace, open_for_reading


def prepare(workspace: Workspace, step: int, source: Path, *, copied: bool = False) -> StepFolders:
    """Make the folders of a model that reads one name and writes one."""
    return workspace.prepare(step, sources={"in": source}, writes=["out"], copy_inputs=copied)


@pytest.fixture
def source(tmp_path: Path) -> Path:
    source = tmp_path / "input"
    (source / "deep").mkdir(parents=True)
    (source / "deep" / "slice").write_text("pixels")
    (source / "link").symlink_to("/etc/passwd")
    os.mkfifo(source / "fifo")
    return source


def test_the_input_is_the_source_itself_and_anyone_may_write_the_output(tmp_path: Path, source: Path) -> None:
    folders = prepare(Workspace(tmp_path / "run"), 0, source)
    assert folders.inputs["in"] == source
    assert stat.S_IMODE(folders.outputs["out"].stat().st_mode) == 0o777
    assert stat.S_IMODE((tmp_path / "run").stat().st_mode) == 0o700


def test_a_copied_input_holds_regular_files_that_anyone_may_write(tmp_path: Path, source: Path) -> None:
    copy = prepare(Workspace(tmp_path / "run"), 0, source, copied=True).inputs["in"]
    assert sorted(str(path.relative_to(copy)) for path in copy.rglob("*")) == ["deep", "deep/slice"]
    assert stat.S_IMODE((copy / "deep" / "slice").stat().st_mode) == 0o666
    (copy / "deep" / "slice").write_text("changed")
    assert (source / "deep" / "slice").read_text() == "pixels"


def test_a_killed_attempt_leaves_nothing_and_its_links_are_not_followed(tmp_path: Path, source: Path) -> None:
    workspace = Workspace(tmp_path / "run")
    left = prepare(workspace, 0, source).outputs["out"]
    locked = left / "locked"
    locked.mkdir()
    (locked / "file").write_text("x")
    locked.chmod(0)
    (left / "way out").symlink_to(source)
    fresh = prepare(workspace, 0, source).outputs["out"]
    assert list(fresh.iterdir()) == []
    assert (source / "deep" / "slice").exists()


def test_what_a_step_writes_is_unfinished_from_before_it_is_made_anew_until_it_is_said_to_be_finished(
    tmp_path: Path, source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    workspace = Workspace(tmp_path / "run")
    first = prepare(workspace, 0, source).outputs["out"]
    other = prepare(workspace, 1, source).outputs["out"]
    workspace.finish(0)
    assert (workspace.is_unfinished(first), workspace.is_unfinished(other)) == (False, True)

    def killed(_: Path) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("flows_engine.workspace.remove_tree", killed)
    with pytest.raises(KeyboardInterrupt):
        prepare(workspace, 0, source)
    assert first.is_dir()
    assert workspace.is_unfinished(first)
    assert not workspace.is_unfinished(tmp_path / "elsewhere" / "model-1" / "output")


def test_a_link_in_place_of_a_step_is_removed_and_not_what_it_names(tmp_path: Path, source: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "model-1").symlink_to(source)
    prepare(Workspace(tmp_path / "run"), 0, source)
    assert (source / "deep" / "slice").exists()


def test_other_steps_are_left_alone(tmp_path: Path, source: Path) -> None:
    workspace = Workspace(tmp_path / "run")
    first = prepare(workspace, 0, source).outputs["out"]
    (first / "result").write_text("x")
    second = prepare(workspace, 1, workspace.outputs(0, ["out"])["out"])
    assert second.inputs["in"] == first
    assert (first / "result").exists()


def test_a_source_that_is_gone_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(WorkspaceError, match=r"model 2 .*process the study again"):
        prepare(Workspace(tmp_path / "run"), 1, tmp_path / "gone")


def test_the_next_model_may_read_what_this_one_kept_to_itself(tmp_path: Path, source: Path) -> None:
    workspace = Workspace(tmp_path / "run")
    output = prepare(workspace, 0, source).outputs["out"]
    (output / "private").mkdir(mode=0o700)
    (output / "private" / "file").write_text("x")
    (output / "private" / "file").chmod(0o600)
    target = tmp_path / "elsewhere"
    target.write_text("x")
    target.chmod(0o600)
    (output / "link").symlink_to(target)
    open_for_reading(output)
    assert stat.S_IMODE((output / "private").stat().st_mode) & 0o555 == 0o555
    assert stat.S_IMODE((output / "private" / "file").stat().st_mode) & 0o444 == 0o444
    assert stat.S_IMODE(target.stat().st_mode) == 0o600


def test_each_of_several_names_has_a_folder_of_its_own(tmp_path: Path, source: Path) -> None:
    workspace = Workspace(tmp_path / "run")
    left = workspace.prepare(0, sources={"src": source}, writes=["mask", "dose"], copy_inputs=False).outputs
    assert left == workspace.outputs(0, ["mask", "dose"])
    assert left["mask"] != left["dose"]
    for folder in left.values():
        assert stat.S_IMODE(folder.stat().st_mode) == 0o777
        (folder / "result").write_text(folder.name)
    merged = workspace.prepare(1, sources={"src": source, **left}, writes=["dst"], copy_inputs=True)
    assert {name: (merged.inputs[name] / "result").read_text() for name in left} == {"mask": "mask", "dose": "dose"}
    assert (merged.inputs["src"] / "deep" / "slice").read_text() == "pixels"
    assert all(folder.is_relative_to(tmp_path / "run" / "model-2") for folder in merged.inputs.values())


def test_one_source_of_several_that_is_gone_is_told(tmp_path: Path, source: Path) -> None:
    with pytest.raises(WorkspaceError, match=str(tmp_path / "gone")):
        Workspace(tmp_path / "run").prepare(
            1, sources={"src": source, "mask": tmp_path / "gone"}, writes=["dst"], copy_inputs=False
        )


def test_a_model_reads_its_config_and_the_next_attempt_has_the_same(tmp_path: Path, source: Path) -> None:
    workspace = Workspace(tmp_path / "run")
    for _ in range(2):
        folders = workspace.prepare(
            0, sources={"src": source}, writes=["dst"], copy_inputs=False, config="threshold: 0.5\n"
        )
        assert folders.config is not None
        assert [path.name for path in folders.config.iterdir()] == ["config.yaml"]
        assert (folders.config / "config.yaml").read_text() == "threshold: 0.5\n"
        assert stat.S_IMODE((folders.config / "config.yaml").stat().st_mode) & 0o444 == 0o444
    assert prepare(workspace, 0, source).config is None


@pytest.mark.parametrize(("number", "error"), [(errno.ENOSPC, NoSpaceError), (errno.EACCES, WorkspaceError)])
def test_a_full_disk_is_told_from_what_does_not_pass(
    tmp_path: Path, source: Path, monkeypatch: pytest.MonkeyPatch, number: int, error: type[Exception]
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(Path, "mkdir", refuse)
    with pytest.raises(error):
        prepare(Workspace(tmp_path / "run"), 0, source)
