from __future__ import annotations

import io
import stat
import tarfile
from pathlib import Path

import pytest

from flows_engine.errors import StaticMountError
from flows_engine.unpacking import unpack


def _archive(path: Path, *members: tarfile.TarInfo) -> Path:
    with tarfile.open(path, "w") as archive:
        for member in members:
            content = b"x" * member.size
            archive.addfile(member, io.BytesIO(content) if member.isreg() else None)
    return path


def _member(name: str, *, kind: bytes = tarfile.REGTYPE, link: str = "", mode: int = 0o644) -> tarfile.TarInfo:
    member = tarfile.TarInfo(name)
    member.type, member.linkname, member.mode = kind, link, mode
    member.size = 3 if kind == tarfile.REGTYPE else 0
    return member


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "unpacked"
    folder.mkdir()
    return folder


def test_files_folders_and_links(tmp_path: Path, folder: Path) -> None:
    archive = _archive(
        tmp_path / "a.tar",
        _member("./", kind=tarfile.DIRTYPE),
        _member("bin/run", mode=0o6777),
        _member("same", kind=tarfile.LNKTYPE, link="bin/run"),
        _member("link", kind=tarfile.SYMTYPE, link="bin/run"),
        _member("bin/run", mode=0o600),
    )
    unpack(archive, folder)
    assert stat.S_IMODE((folder / "bin" / "run").stat().st_mode) == 0o644
    assert (folder / "same").read_bytes() == b"xxx"
    assert (folder / "same").stat().st_nlink == 1
    assert (folder / "link").readlink() == Path("bin/run")


def test_set_user_id_does_not_survive(tmp_path: Path, folder: Path) -> None:
    unpack(_archive(tmp_path / "a.tar", _member("run", mode=0o4755)), folder)
    assert stat.S_IMODE((folder / "run").stat().st_mode) == 0o755


@pytest.mark.parametrize(
    "members",
    [
        [_member("../out")],
        [_member("a/../../out")],
        [_member("/tmp/dicomflow-out")],
        [_member("link", kind=tarfile.SYMTYPE, link="..")],
        [_member("link", kind=tarfile.SYMTYPE, link="/etc")],
        [_member("a/link", kind=tarfile.SYMTYPE, link="../../x")],
        [_member("link", kind=tarfile.LNKTYPE, link="../secret")],
        [_member("here", kind=tarfile.SYMTYPE, link="."), _member("here/file")],
        [_member("device", kind=tarfile.CHRTYPE)],
        [_member("fifo", kind=tarfile.FIFOTYPE)],
    ],
)
def test_what_leads_out_is_refused(tmp_path: Path, folder: Path, members: list[tarfile.TarInfo]) -> None:
    (tmp_path / "secret").write_text("secret")
    before = sorted(path.name for path in tmp_path.iterdir())
    with pytest.raises(StaticMountError, match=r"a\.tar"):
        unpack(_archive(tmp_path / "a.tar", *members), folder)
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([*before, "a.tar"])


def test_a_file_in_place_of_a_link_does_not_write_through_it(tmp_path: Path, folder: Path) -> None:
    archive = _archive(
        tmp_path / "a.tar",
        _member("target"),
        _member("file", kind=tarfile.SYMTYPE, link="target"),
        _member("file", mode=0o755),
    )
    unpack(archive, folder)
    assert not (folder / "file").is_symlink()
    assert stat.S_IMODE((folder / "target").stat().st_mode) == 0o644
