from __future__ import annotations

import stat

import pytest

from dicom_gateway.errors import StartError
from dicom_gateway.uid_key import UidKey, find_uid_key, make_uid_key
from flows_engine.handoff.study_store import Fingerprint, TagColumn

UID = "1.2.826.0.1.3680043.8.498.1"


def test_a_key_is_made_once_for_its_owner_alone(tmp_path):
    first = make_uid_key(tmp_path)

    assert make_uid_key(tmp_path).hash_of(UID) == first.hash_of(UID)
    assert find_uid_key(tmp_path).hash_of(UID) == first.hash_of(UID)
    (file,) = tmp_path.iterdir()
    assert stat.S_IMODE(file.stat().st_mode) == 0o600


def test_who_only_looks_makes_no_key(tmp_path):
    assert find_uid_key(tmp_path) is None
    assert list(tmp_path.iterdir()) == []


def test_two_sites_know_a_uid_by_different_hashes(tmp_path):
    for name in ("one", "other"):
        (tmp_path / name).mkdir()
    one, other = make_uid_key(tmp_path / "one"), make_uid_key(tmp_path / "other")

    assert one.hash_of(UID) != other.hash_of(UID)
    assert one.check_value != other.check_value
    assert UID not in one.hash_of(UID)


@pytest.mark.parametrize("content", ["", "no hexadecimal", "00" * 31])
@pytest.mark.parametrize("read", [make_uid_key, find_uid_key])
def test_a_damaged_key_is_told_with_the_way_out(tmp_path, content, read):
    (tmp_path / "uid-key").write_text(content)

    with pytest.raises(StartError, match="uid-key is damaged; delete it"):
        read(tmp_path)


def test_each_uid_of_a_study_has_its_hash(make_record):
    key = UidKey(b"key")
    column = TagColumn(values=(("1.2.3",), ("1.2.4",), ("",), ()), index=(0, 1, 2))
    fingerprint = Fingerprint(instance_count=3, columns={"0020000D": column})

    record = make_record().model_copy(update={"fingerprint": fingerprint})

    assert key.hashes_of(record) == {key.hash_of("1.2.3"), key.hash_of("1.2.4")}


def test_a_study_without_a_uid_has_no_hash(make_record):
    assert UidKey(b"key").hashes_of(make_record()) == frozenset()
