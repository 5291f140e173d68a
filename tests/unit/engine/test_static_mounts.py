from __future__ import annotations

import gzip
import hashlib
import tarfile
from pathlib import Path

import pytest
import zstandard

from flows_engine.definition.schema import StaticMount
from flows_engine.errors import StaticMountError
from flows_engine.static_mounts import StaticMounts


@pytest.fixture
def mounts(tmp_path: Path) -> StaticMounts:
    (tmp_path / "static" / "FolderModel").mkdir(parents=True)
    (tmp_path / "static" / "FolderModel" / "weights").write_text("folder")
    (tmp_path / "static" / "FolderModel" / "only here").write_text("folder")
    _archive(tmp_path / "static" / "Packed.tar.gz", weights="packed", config="packed")
    return StaticMounts(static_dir=tmp_path / "static", cache=tmp_path / "static-cache")


def _archive(path: Path, **files: str) -> None:
    with tarfile.open(path, "w:gz") as archive:
        for name, text in files.items():
            file = path.parent / "scratch"
            file.write_text(text)
            archive.add(file, name)
            file.unlink()


def _mount(source: str, target: str = "/model") -> StaticMount:
    return StaticMount(source=source, target=target)


def test_a_folder_is_mounted_as_it_is(mounts: StaticMounts) -> None:
    (mount,) = mounts.resolve([_mount("FolderModel")])
    assert (mount.source, mount.target, mount.read_only) == (mounts.static_dir / "FolderModel", "/model", True)
    assert not mounts.cache.exists()


@pytest.mark.parametrize("name", ["Packed", "Packed.tar.gz"])
def test_an_archive_is_unpacked_once(mounts: StaticMounts, name: str) -> None:
    (mount,) = mounts.resolve([_mount(name)])
    assert (mount.source / "weights").read_text() == "packed"
    made = mount.source.stat().st_ino
    assert mounts.resolve([_mount(name)])[0].source.stat().st_ino == made


@pytest.mark.parametrize("checked", [True, False])
def test_zstandard_is_unpacked_and_a_damaged_one_is_named(mounts: StaticMounts, checked: bool) -> None:
    packed = mounts.static_dir / "Packed.tar.gz"
    plain = gzip.decompress(packed.read_bytes())
    packed.unlink()
    whole = zstandard.ZstdCompressor(write_checksum=checked).compress(plain)
    (mounts.static_dir / "Packed.tar.zst").write_bytes(whole)
    (mount,) = mounts.resolve([_mount("Packed")])
    assert (mount.source / "weights").read_text() == "packed"
    (mounts.static_dir / "Half.tar.zst").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(StaticMountError, match="Half"):
        mounts.resolve([_mount("Half")])


def test_an_archive_is_known_by_its_digest_and_a_folder_by_none(mounts: StaticMounts) -> None:
    asked = [_mount("Packed"), _mount("FolderModel", "/other")]
    mounts.resolve(asked)
    content = (mounts.static_dir / "Packed.tar.gz").read_bytes()
    told = {"Packed": hashlib.sha256(content).hexdigest(), "FolderModel": None}
    assert mounts.digests(asked) == told
    for kept in mounts.cache.glob("*.sha256"):
        kept.unlink()  # as an earlier version left it
    assert mounts.digests(asked) == told


def test_a_new_version_of_an_archive_is_unpacked_beside_the_old(mounts: StaticMounts) -> None:
    (old,) = mounts.resolve([_mount("Packed")])
    _archive(mounts.static_dir / "Packed.tar.gz", weights="a newer version")
    (new,) = mounts.resolve([_mount("Packed")])
    assert (old.source / "weights").read_text() == "packed"
    assert (new.source / "weights").read_text() == "a newer version"


def test_what_shares_a_place_is_merged_and_the_later_wins(mounts: StaticMounts) -> None:
    (mount,) = mounts.resolve([_mount("FolderModel"), _mount("Packed", "/model/")])
    assert {path.name: path.read_text() for path in mount.source.iterdir()} == {
        "weights": "packed",
        "only here": "folder",
        "config": "packed",
    }
    (other,) = mounts.resolve([_mount("Packed"), _mount("FolderModel")])
    assert (other.source / "weights").read_text() == "folder"
    assert (mounts.static_dir / "FolderModel" / "weights").read_text() == "folder"


def test_what_a_killed_process_left_half_unpacked_is_made_again(mounts: StaticMounts) -> None:
    (mount,) = mounts.resolve([_mount("Packed")])
    mount.source.rename(mount.source.with_suffix(".unfinished"))
    (mount.source.with_suffix(".unfinished") / "junk").touch()
    (again,) = mounts.resolve([_mount("Packed")])
    assert sorted(path.name for path in again.source.iterdir()) == ["config", "weights"]


def test_a_missing_source_is_named_with_what_to_do(mounts: StaticMounts) -> None:
    with pytest.raises(StaticMountError, match=r"'NoModel' is not in STATIC_DIR .*NoModel\.tar"):
        mounts.resolve([_mount("NoModel")])


def test_a_link_that_leads_out_of_the_folder_is_refused(mounts: StaticMounts) -> None:
    (mounts.static_dir.parent / "outside").mkdir()
    (mounts.static_dir / "link").symlink_to(mounts.static_dir.parent / "outside")
    with pytest.raises(StaticMountError, match="out of STATIC_DIR"):
        mounts.resolve([_mount("link")])


@pytest.mark.parametrize("content", [b"", b"no archive at all"])
def test_a_broken_archive_is_named(mounts: StaticMounts, content: bytes) -> None:
    (mounts.static_dir / "Broken.tar").write_bytes(content)
    with pytest.raises(StaticMountError, match="Broken"):
        mounts.resolve([_mount("Broken")])


def test_half_an_archive_is_an_error_and_not_half_a_model(mounts: StaticMounts) -> None:
    whole = mounts.static_dir / "Packed.tar.gz"
    (mounts.static_dir / "Half.tar.gz").write_bytes(whole.read_bytes()[: whole.stat().st_size // 2])
    with pytest.raises(StaticMountError, match="Half"):
        mounts.resolve([_mount("Half")])
