from __future__ import annotations

import pytest
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, MRImageStorage

from dicom_gateway.commitment import CLASS_CONFLICT, NO_SUCH_INSTANCE, PROCESSING_FAILURE, Reference
from dicom_gateway.committed_instances import CommittedInstances
from dicom_gateway.file_meta import file_meta
from dicom_gateway.uid_key import make_uid_key
from tests.fakes.instances import ct, encoded

STUDY = "0193e4c2-7a54-7cc3-98c4-dc0c0c070001"
ONE = Reference(sop_class_uid=CTImageStorage, sop_instance_uid="1.2.3")


def file_of(uid):
    head = file_meta(sop_class_uid=CTImageStorage, sop_instance_uid=uid, transfer_syntax_uid=ExplicitVRLittleEndian)
    return head + encoded(ct(SOPInstanceUID=uid))


@pytest.fixture
def instances(tmp_path, ledger):
    (tmp_path / "spool").mkdir()
    (tmp_path / "studies").mkdir()
    make_uid_key(tmp_path)
    return CommittedInstances(tmp_path, ledger=tmp_path / "ledger.sqlite", durability="instance")


def put(path, content=None, *, mode=0o644):
    path.parent.mkdir(parents=True)
    path.write_bytes(file_of("1.2.3") if content is None else content)
    path.chmod(mode)


def enter(tmp_path, ledger):
    ledger.add_unreadable(STUDY, reason="")
    ledger.enter_instances(STUDY, [make_uid_key(tmp_path).instance_hash("1.2.3")])


def test_what_is_whole_in_a_reception_is_committed(instances, tmp_path):
    put(tmp_path / "spool" / "r" / "incoming" / "1.2.3.dcm")
    assert instances.look([ONE]).failures == {}


def test_what_is_half_in_a_reception_is_not(instances, tmp_path):
    put(tmp_path / "spool" / "r" / "incoming" / "1.2.3.dcm", mode=0o600)
    look = instances.look([ONE])
    assert (look.failures, look.may_change) == ({ONE: NO_SUCH_INSTANCE}, False)


@pytest.mark.parametrize("place", ["1.2.3.dcm", "CT/thorax.dcm/1.2.3.dcm"])
def test_what_is_in_the_store_is_committed_wherever_it_lies(instances, tmp_path, ledger, place):
    enter(tmp_path, ledger)
    put(tmp_path / "studies" / STUDY / "input" / place)
    assert instances.look([ONE]).failures == {}


@pytest.mark.parametrize("content", [b"", file_of("1.2.3")[:-1], file_of("1.2.3")[:200], file_of("1.2.4"), b"x" * 500])
def test_what_is_not_whole_any_more_is_not_committed(instances, tmp_path, ledger, content):
    enter(tmp_path, ledger)
    put(tmp_path / "studies" / STUDY / "input" / "1.2.3.dcm", content)
    look = instances.look([ONE])
    assert (look.failures, look.may_change) == ({ONE: PROCESSING_FAILURE}, False)


def test_another_class_is_a_conflict(instances, tmp_path):
    put(tmp_path / "spool" / "r" / "incoming" / "1.2.3.dcm")
    other = Reference(sop_class_uid=MRImageStorage, sop_instance_uid="1.2.3")
    assert instances.look([ONE, other]).failures == {other: CLASS_CONFLICT}


def test_a_study_that_somebody_removed_is_not_committed(instances, tmp_path, ledger):
    enter(tmp_path, ledger)
    assert instances.look([ONE]).failures == {ONE: NO_SUCH_INSTANCE}


def test_what_may_be_on_its_way_may_be_found_by_another_look(instances, tmp_path, ledger):
    (tmp_path / "spool" / "r" / "0" / "input").mkdir(parents=True)
    assert instances.look([ONE]).may_change


def test_what_is_not_in_the_index_yet_may_be_found_by_another_look(instances, ledger):
    ledger.add_unreadable(STUDY, reason="")
    assert instances.look([ONE]).may_change


def test_a_ledger_that_is_silent_commits_nothing(instances, tmp_path):
    (tmp_path / "ledger.sqlite").unlink()
    look = instances.look([ONE])
    assert (look.failures, look.may_change) == ({ONE: PROCESSING_FAILURE}, True)
