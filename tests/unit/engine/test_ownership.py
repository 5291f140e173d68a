from __future__ import annotations

import io
import os
import tarfile
from pathlib import Path

from flows_engine.ownership import Strangers, handing_over, strangers


def test_what_is_anothers_is_found_and_links_are_not_followed(tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    (outside / "deep").mkdir(parents=True)
    folder = tmp_path / "folder"
    (folder / "a" / "b").mkdir(parents=True)
    (folder / "a" / "b" / "file").touch()
    (folder / "a" / "out").symlink_to(outside)
    os.mkfifo(folder / "fifo")
    nobody = os.geteuid() + 1
    found = strangers(folder, user=nobody)
    assert (found.folders, found.files) == (("a", "a/b"), ("a/b/file",))
    assert not strangers(folder, user=os.geteuid())


def test_the_archive_names_folders_before_what_is_in_them_and_files_by_further_names() -> None:
    odd = os.fsdecode(b"a/\xff\nx")
    archive = handing_over(Strangers(folders=("a",), files=("f", odd)), user=7, group=8, names_folder="n")
    with tarfile.open(fileobj=io.BytesIO(archive), encoding="utf-8", errors="surrogateescape") as tar:
        entries = [(entry.name, entry.type, entry.linkname, entry.uid, entry.gid) for entry in tar]
    assert entries == [
        ("a", tarfile.DIRTYPE, "", 7, 8),
        ("n", tarfile.DIRTYPE, "", 7, 8),
        ("n/0", tarfile.LNKTYPE, "f", 7, 8),
        ("n/1", tarfile.LNKTYPE, odd, 7, 8),
    ]
    empty = handing_over(Strangers(folders=(), files=()), user=7, group=8, names_folder="n")
    with tarfile.open(fileobj=io.BytesIO(empty)) as tar:
        assert tar.getnames() == []
