from __future__ import annotations

import pytest

from dicom_gateway.uid_filling import UidFilling
from dicom_gateway.uid_key import UidKey
from flows_engine.handoff.study_store import Fingerprint, StudyStore, TagColumn
from tests.services import wait_until

KEY = UidKey(b"key")


@pytest.fixture
def store(tmp_path):
    return StudyStore(tmp_path / "studies")


@pytest.fixture
def older(ledger, store, make_record):
    """Return a maker of studies that a ledger has had since before it kept UIDs."""

    def make(number, uid):
        column = TagColumn(values=((uid,),), index=(0, 0, 0))
        record = make_record(number).model_copy(
            update={"fingerprint": Fingerprint(instance_count=3, columns={"0020000D": column})}
        )
        folder = store.folder(record.study_id)
        folder.mkdir(parents=True)
        (folder / "study.json").write_text(record.model_dump_json())
        ledger.add(record)
        return record.study_id

    return make


def filled(ledger, store):
    filling = UidFilling(ledger=ledger, store=store, uid_key=KEY)
    filling.start()
    wait_until(lambda: not filling._thread.is_alive(), seconds=10, what="the filling ends")
    filling.stop()


def test_studies_that_were_there_before_are_found_by_their_uid(ledger, store, older):
    studies = [older(f"{number:04d}", f"1.2.{number}") for number in range(3)]

    filled(ledger, store)

    assert [ledger.studies_of(KEY.hash_of(f"1.2.{number}")) for number in range(3)] == [(study,) for study in studies]
    assert ledger.without_uids() == ()


def test_a_study_whose_record_is_gone_stops_nobody_and_is_looked_for_again(ledger, store, older):
    gone, there = older("0001", "1.2.1"), older("0002", "1.2.2")
    (store.folder(gone) / "study.json").unlink()

    filled(ledger, store)

    assert ledger.studies_of(KEY.hash_of("1.2.2")) == (there,)
    assert ledger.without_uids() == (gone,)


def test_a_filling_that_never_began_can_be_stopped(ledger, store):
    UidFilling(ledger=ledger, store=store, uid_key=KEY).stop()
