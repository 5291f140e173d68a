from __future__ import annotations

import errno
import logging
import os
import stat
import threading
from pathlib import Path

import pytest
from pydicom.dataset import Dataset
from pydicom.sequence import Sequence

from flows_engine import study_view as module
from flows_engine.definition.schema import FlowDefinition
from flows_engine.errors import NoInputError, NoSpaceError, WorkspaceError
from flows_engine.handoff.study_store import Fingerprint
from flows_engine.study_view import study_view
from tests.factories import ct_slice, flow_keys, leaked_canaries, study_record, write_instances

STUDY = study_record(Fingerprint(instance_count=3, columns={}))
HEADS = {"triggers": [{"SeriesDescription": "head"}], "input": "matched"}


@pytest.fixture
def source(tmp_path: Path) -> Path:
    slices = [ct_slice(SeriesDescription=text, Modality="CT") for text in ("head", "neck", "head")]
    write_instances(slices, tmp_path / "studies" / "input")
    return tmp_path / "studies" / "input"


def view(source: Path, run: str = "run", **keys: object) -> Path:
    definition = FlowDefinition.model_validate(flow_keys(name="A", **keys))
    folder = source.parent.parent / "runs" / run / "study"
    return study_view(definition, study=STUDY, source=source, folder=folder, logger=logging.getLogger("test"))


def listed(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def test_the_files_are_those_of_the_study_and_take_no_room(source: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    before = {path.name: path.read_bytes() for path in source.iterdir()}
    folder = view(source, **HEADS)
    assert listed(folder) == ["00000.dcm", "00002.dcm"]
    assert caplog.messages == ["the models get 2 of 3 instances"]
    assert all((folder / name).samefile(source / name) for name in listed(folder))
    assert {path.name: path.read_bytes() for path in source.iterdir()} == before


def test_a_container_of_any_user_can_read_it_and_the_host_s_others_cannot(source: Path) -> None:
    old = os.umask(0o077)
    try:
        folder = view(source, tar_subdir=["SeriesDescription", "Modality"])
    finally:
        os.umask(old)
    assert listed(folder) == ["head/CT/00000.dcm", "head/CT/00002.dcm", "neck/CT/00001.dcm"]
    modes = {stat.S_IMODE(path.stat().st_mode) for path in [folder, *folder.rglob("*")] if path.is_dir()}
    assert modes == {0o755}
    assert stat.S_IMODE(folder.parent.stat().st_mode) == 0o700


@pytest.mark.parametrize("code", [errno.EXDEV, errno.EPERM, errno.EMLINK])
def test_where_no_link_can_be_made_a_copy_is(
    source: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, code: int
) -> None:
    def refused(_self: Path, _target: Path) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(Path, "hardlink_to", refused)
    folder = view(source, **HEADS)
    assert [(folder / name).read_bytes() for name in listed(folder)] == [
        (source / name).read_bytes() for name in ("00000.dcm", "00002.dcm")
    ]
    assert caplog.messages == ["no links to files of the study can be made here, so they are copied: 2"]
    assert not (folder / "00000.dcm").samefile(source / "00000.dcm")
    assert stat.S_IMODE((folder / "00000.dcm").stat().st_mode) == 0o644


def test_a_retry_finds_it_as_it_was_and_makes_what_is_missing(source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = view(source, **HEADS)
    with monkeypatch.context() as patched:
        patched.setattr(module, "read_study", lambda *_args, **_keys: pytest.fail("the files are read again"))
        assert view(source, **HEADS) == folder
    (folder / "00000.dcm").unlink()
    (folder / "00002.dcm").unlink()
    folder.rmdir()
    assert listed(view(source, **HEADS)) == ["00000.dcm", "00002.dcm"]


def test_what_a_killed_attempt_left_is_made_anew(source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def killed(_file: Path, _target: Path) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(module, "_link", killed)
        with pytest.raises(KeyboardInterrupt):
            view(source, **HEADS)
    folder = source.parent.parent / "runs" / "run" / "study"
    assert not folder.exists()
    assert listed(view(source, **HEADS)) == ["00000.dcm", "00002.dcm"]
    assert sorted(path.name for path in folder.parent.iterdir()) == ["study", "study.lock"]


def test_branches_that_begin_at_once_get_the_same(source: Path) -> None:
    found: list[list[str]] = []
    threads = [threading.Thread(target=lambda: found.append(listed(view(source, **HEADS)))) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [["00000.dcm", "00002.dcm"]] * 8


def test_nothing_to_give_leaves_nothing(source: Path) -> None:
    with pytest.raises(NoInputError):
        view(source, triggers=[{"Modality": "MR"}], input="matched")
    assert not (source.parent.parent / "runs" / "run" / "study").exists()


@pytest.mark.parametrize(("code", "kind"), [(errno.ENOSPC, NoSpaceError), (errno.EIO, WorkspaceError)])
def test_what_the_disk_refuses_is_told_without_a_path_of_the_study(
    source: Path, monkeypatch: pytest.MonkeyPatch, code: int, kind: type[Exception]
) -> None:
    def refused(_self: Path, target: Path) -> None:
        raise OSError(code, os.strerror(code), str(target))

    monkeypatch.setattr(Path, "hardlink_to", refused)
    with pytest.raises(kind) as caught:
        view(source, tar_subdir=["PatientName"])
    assert leaked_canaries(str(caught.value)) == []


def test_more_values_than_are_searched_are_told(source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    item = Dataset()
    item.Modality = "CT"
    ct_slice(ReferencedImageSequence=Sequence([item])).save_as(source / "9.dcm", enforce_file_format=True)
    monkeypatch.setattr("flows_engine.handoff.deep_values.MOST_VALUES", 0)
    with pytest.raises(NoInputError, match="more than 0 different values"):
        view(source, triggers=[{"ReferencedImageSequence.Modality": "CT"}], input="matched")
