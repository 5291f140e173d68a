from __future__ import annotations

import traceback
from datetime import UTC, datetime

import pytest

from flows_engine.handoff.run_request import Sender
from flows_engine.handoff.study_store import Fingerprint, StudyNotFoundError, StudyRecord, StudyStore, TagColumn
from tests.factories import CANARY_ID, leaked_canaries

STUDY_ID = "0193e4c2-7a54-7cc3-98c4-dc0c0c070001"


def record():
    return StudyRecord(
        study_id=STUDY_ID,
        sender=Sender(ae_title="PACS", host="10.0.0.1", port=104),
        called_ae_title="STORESCP",
        received_at=datetime(2024, 5, 6, tzinfo=UTC),
        complete=True,
        instance_count=2,
        duplicate_count=0,
        conflict_count=1,
        size_bytes=10,
        fingerprint=Fingerprint(instance_count=2, columns={"00080060": TagColumn(values=(("CT",),), index=(0, -1))}),
    )


def put(root, study_id=STUDY_ID):
    (root / study_id / "input").mkdir(parents=True)
    (root / study_id / "study.json").write_text(record().model_dump_json())


def test_a_study_is_read_as_it_was_written(tmp_path):
    put(tmp_path)
    store = StudyStore(tmp_path)
    assert store.record(STUDY_ID) == record()
    assert store.input_folder(STUDY_ID) == tmp_path / STUDY_ID / "input"


def test_an_absent_study_is_not_found(tmp_path):
    store = StudyStore(tmp_path)
    with pytest.raises(StudyNotFoundError, match=STUDY_ID):
        store.record(STUDY_ID)
    with pytest.raises(StudyNotFoundError, match=STUDY_ID):
        store.input_folder(STUDY_ID)


@pytest.mark.parametrize(
    "damage",
    [lambda text: text[: len(text) // 2], lambda text: text.replace('"CT"', "1"), lambda _: "", lambda _: "[]"],
)
def test_a_damaged_record_is_said_so_in_one_line_without_what_it_holds(tmp_path, damage):
    put(tmp_path)
    file = tmp_path / STUDY_ID / "study.json"
    file.write_text(damage(file.read_text().replace("PACS", CANARY_ID)))

    with pytest.raises(StudyNotFoundError, match=f"the record of study {STUDY_ID} is damaged") as caught:
        StudyStore(tmp_path).record(STUDY_ID)

    assert leaked_canaries("".join(traceback.format_exception(caught.value))) == []
    assert len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize("study_id", ["../../etc", "", "/etc", "0193E4C2", "a" * 65, "0193e4c2\n", ".."])
def test_what_is_no_study_id_leads_nowhere(tmp_path, study_id):
    with pytest.raises(StudyNotFoundError, match="is no study id"):
        StudyStore(tmp_path).folder(study_id)


def test_all_studies_are_listed_oldest_first(tmp_path):
    later = STUDY_ID.replace("0001", "0002")
    put(tmp_path, later)
    put(tmp_path)
    (tmp_path / "lost+found").mkdir()
    assert list(StudyStore(tmp_path).study_ids()) == [STUDY_ID, later]
    assert list(StudyStore(tmp_path / "absent").study_ids()) == []
