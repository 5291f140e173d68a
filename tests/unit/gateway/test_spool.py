from __future__ import annotations

import errno
import os
import stat
import threading
from datetime import UTC, datetime

import pytest
from pydantic import ValidationError
from pydicom.uid import generate_uid

from dicom_gateway import durable_files
from dicom_gateway.errors import InstanceRefusedError, SpoolFullError
from dicom_gateway.spool import Origin, Spool, write_record
from flows_engine.handoff.layout import Layout
from flows_engine.handoff.run_request import Sender
from tests.fakes.instances import CANARIES, ct, received

NOW = datetime(2024, 5, 6, tzinfo=UTC)


@pytest.fixture
def spool(tmp_path):
    return Spool(tmp_path, layout=Layout([]))


def open_reception(spool):
    return spool.open(
        sender=Sender(ae_title="PACS", host="10.0.0.1", port=1), called_ae_title="STORESCP", received_at=NOW
    )


def files_below(folder):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def test_nothing_is_on_disk_before_the_first_instance(spool, tmp_path):
    assert open_reception(spool).close(complete=True) == ()
    assert list(tmp_path.iterdir()) == []


def test_an_instance_is_kept_byte_for_byte(spool):
    instance = received(ct())
    reception = open_reception(spool)
    assert reception.store(instance) == "stored"
    (study,) = reception.close(complete=True)
    path = study.folder / "input" / f"{instance.sop_instance_uid}.dcm"
    assert path.read_bytes() == instance.file_meta + instance.data_set
    assert stat.S_IMODE(path.stat().st_mode) == 0o644
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o755
    assert stat.S_IMODE(study.folder.parent.stat().st_mode) == 0o700


def test_the_record_tells_who_sent_what(spool):
    reception = open_reception(spool)
    instances = [received(ct()) for _ in range(3)]
    for instance in instances:
        reception.store(instance)
    (study,) = reception.close(complete=True)
    assert study.record.instance_count == 3
    assert study.record.size_bytes == sum(len(one.file_meta) + len(one.data_set) for one in instances)
    assert study.record.sender.ae_title == "PACS"
    assert study.record.called_ae_title == "STORESCP"
    assert study.record.received_at == NOW
    assert study.record.complete
    assert study.record.fingerprint.instance_count == 3


def test_patients_are_never_mixed_and_their_folders_do_not_name_them(spool):
    reception = open_reception(spool)
    for patient in ("A", "B", "A", "B", "C"):
        reception.store(received(ct(PatientID=f"CANARY-{patient}")))
    studies = reception.close(complete=True)
    assert sorted(study.record.instance_count for study in studies) == [1, 2, 2]
    assert len({study.record.study_id for study in studies}) == 3
    for study in studies:
        assert len(study.record.fingerprint.columns["00100020"].values) == 1
        assert not any(canary in str(study.folder) for canary in CANARIES)


def test_the_same_instance_twice_is_kept_once(spool):
    instance = received(ct())
    reception = open_reception(spool)
    assert [reception.store(instance), reception.store(instance)] == ["stored", "duplicate"]
    (study,) = reception.close(complete=True)
    assert (study.record.instance_count, study.record.duplicate_count, study.record.conflict_count) == (1, 1, 0)


def test_other_content_under_the_same_uid_is_kept_beside(spool):
    uid = str(generate_uid())
    reception = open_reception(spool)
    versions = [received(ct(SOPInstanceUID=uid, SeriesDescription=text)) for text in ("a", "b", "c")]
    assert [reception.store(version) for version in versions] == ["stored", "conflict", "conflict"]
    assert reception.store(versions[1]) == "duplicate"
    (study,) = reception.close(complete=True)
    contents = {path.name: path.read_bytes() for path in (study.folder / "input").iterdir()}
    expected = zip([f"{uid}.dcm", f"{uid}_2.dcm", f"{uid}_3.dcm"], versions, strict=True)
    assert contents == {name: version.file_meta + version.data_set for name, version in expected}
    assert (study.record.instance_count, study.record.duplicate_count, study.record.conflict_count) == (3, 1, 2)


def test_the_layout_makes_folders_that_others_may_enter(tmp_path):
    reception = open_reception(Spool(tmp_path, layout=Layout(["Modality", "SeriesDescription"])))
    instance = received(ct(SeriesDescription="../../etc/x"))
    reception.store(instance)
    (study,) = reception.close(complete=True)
    (path,) = (study.folder / "input").rglob("*.dcm")
    assert path.parent.parent == study.folder / "input" / "CT"
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o755


@pytest.mark.parametrize(
    ("instance", "status"),
    [
        (received(ct(), sop_instance_uid="1.2.3"), 0xA900),
        (received(ct(SOPInstanceUID=None), sop_instance_uid="1.2.3"), 0xA900),
    ],
)
def test_a_uid_that_is_not_the_commands_is_refused_and_leaves_nothing(spool, tmp_path, instance, status):
    reception = open_reception(spool)
    with pytest.raises(InstanceRefusedError) as caught:
        reception.store(instance)
    assert caught.value.status == status
    assert files_below(tmp_path) == []


def test_half_an_object_is_refused_and_leaves_nothing(spool, tmp_path):
    whole = received(ct())
    half = whole.__class__(**{**vars(whole), "data_set": whole.data_set[: len(whole.data_set) // 2]})
    with pytest.raises(InstanceRefusedError) as caught:
        open_reception(spool).store(half)
    assert caught.value.status == 0xC000
    assert files_below(tmp_path) == []


def test_a_full_disk_refuses_one_instance_and_harms_no_other(spool, monkeypatch):
    reception = open_reception(spool)
    kept = received(ct())
    reception.store(kept)
    real = os.write

    def full(descriptor, content):
        real(descriptor, content[: len(content) // 2])
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "write", full)
    with pytest.raises(SpoolFullError, match="No space left"):
        reception.store(received(ct()))
    with pytest.raises(SpoolFullError):
        reception.store(received(ct(PatientID="other")))
    monkeypatch.undo()
    (study,) = reception.close(complete=True)
    assert files_below(study.folder) == [f"input/{kept.sop_instance_uid}.dcm"]
    assert sorted(path.name for path in study.folder.parent.iterdir()) == ["0", "reception.json"]


def test_a_disk_that_is_full_from_the_start_leaves_nothing(spool, tmp_path, monkeypatch):
    def full(*_arguments):
        raise OSError(errno.EDQUOT, "Disk quota exceeded")

    monkeypatch.setattr(os, "write", full)
    reception = open_reception(spool)
    with pytest.raises(SpoolFullError):
        reception.store(received(ct()))
    assert reception.close(complete=False) == ()
    assert list(tmp_path.iterdir()) == []


def test_a_closed_reception_takes_nothing_and_closes_once(spool):
    reception = open_reception(spool)
    reception.store(received(ct()))
    assert len(reception.close(complete=True)) == 1
    assert reception.close(complete=False) == ()
    with pytest.raises(InstanceRefusedError):
        reception.store(received(ct()))


def test_threads_may_store_into_one_reception(spool):
    reception = open_reception(spool)
    instances = [received(ct()) for _ in range(24)]
    threads = [threading.Thread(target=lambda part=part: [reception.store(one) for one in part]) for part in
               (instances[:8], instances[8:16], instances[16:])]  # fmt: skip
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    (study,) = reception.close(complete=True)
    assert study.record.instance_count == len(files_below(study.folder)) == 24


def test_who_sends_is_on_disk_before_the_first_instance_is(spool, tmp_path, monkeypatch):
    seen = []
    real = durable_files.write_file
    monkeypatch.setattr(
        durable_files, "write_file", lambda path, *rest, **named: (seen.append(path.name), real(path, *rest, **named))
    )
    open_reception(spool).store(received(ct()))
    assert seen[0] == "reception.json"


def test_an_open_reception_comes_back_as_incomplete(spool):
    reception = open_reception(spool)
    uid = str(generate_uid())
    for dataset in (ct(SOPInstanceUID=uid), ct(SOPInstanceUID=uid, SeriesDescription="b"), ct(PatientID="other")):
        reception.store(received(dataset))
    studies = sorted(spool.leftovers(), key=lambda study: study.record.instance_count)
    assert [study.record.instance_count for study in studies] == [1, 2]
    assert [study.record.conflict_count for study in studies] == [0, 1]
    assert not any(study.record.complete for study in studies)
    assert studies[0].record.sender.ae_title == "PACS"
    assert studies[1].record.fingerprint.columns["0008103E"].values == (("Head CANARY",), ("b",))


def test_the_fingerprint_is_the_same_after_a_restart(spool):
    reception = open_reception(spool)
    for _ in range(3):
        reception.store(received(ct()))
    reception_folder = next(spool.root.iterdir())
    (recovered,) = spool.leftovers()
    (closed,) = reception.close(complete=True)
    assert reception_folder.is_dir()
    as_sets = [
        {
            tag: sorted(column.values[place] for place in column.index)
            for tag, column in study.record.fingerprint.columns.items()
        }
        for study in (recovered, closed)
    ]
    assert as_sets[0] == as_sets[1]


def test_a_closed_group_comes_back_as_it_was_closed(spool):
    reception = open_reception(spool)
    reception.store(received(ct()))
    (study,) = reception.close(complete=True)
    write_record(study)
    assert list(spool.leftovers()) == [study]


def test_what_was_never_acknowledged_is_thrown_away(spool, tmp_path):
    reception = open_reception(spool)
    reception.store(received(ct()))
    folder = next(tmp_path.iterdir())
    (folder / "7.part").write_bytes(b"half an instance")
    (folder / "1" / "input").mkdir(parents=True)
    (tmp_path / "empty-reception").mkdir()
    (tmp_path / "torn-reception").mkdir()
    (tmp_path / "torn-reception" / "reception.json.part").write_bytes(b"{")
    (study,) = spool.leftovers()
    assert study.folder == folder / "0"
    assert not (folder / "7.part").exists()
    assert not (folder / "1").exists()
    assert [path.name for path in tmp_path.iterdir()] == [folder.name]


def test_a_damaged_note_of_the_sender_loses_no_instance(spool, tmp_path):
    open_reception(spool).store(received(ct()))
    (next(tmp_path.iterdir()) / "reception.json").write_bytes(b"\0\0\0")
    (study,) = spool.leftovers()
    assert study.record.instance_count == 1
    assert study.record.sender.ae_title == "UNKNOWN"


def test_instances_without_a_note_of_the_sender_are_kept(spool, tmp_path):
    open_reception(spool).store(received(ct()))
    (next(tmp_path.iterdir()) / "reception.json").unlink()
    (study,) = spool.leftovers()
    assert study.record.instance_count == 1
    assert study.record.sender.ae_title == "UNKNOWN"
    assert not study.record.complete


def test_two_names_under_one_dummy_id_are_two_studies(spool):
    reception = open_reception(spool)
    for name in ("Doe^John", "DOE^JOHN^M", "Roe^Jane"):
        reception.store(received(ct(PatientID="ANONYMOUS", PatientName=name, PatientBirthDate="")))
    studies = reception.close(complete=True)
    assert sorted(study.record.instance_count for study in studies) == [1, 2]


def test_what_is_wrong_with_a_note_of_the_sender_is_told_without_what_it_says():
    with pytest.raises(ValidationError) as caught:
        Origin.model_validate_json('{"sender": "CANARY"}')
    assert "CANARY" not in str(caught.value)


def test_a_damaged_instance_is_kept_and_counted(spool, tmp_path, caplog):
    reception = open_reception(spool)
    reception.store(received(ct()))
    (path,) = tmp_path.rglob("*.dcm")
    path.write_bytes(b"\0" * 500)
    (study,) = spool.leftovers()
    assert study.record.instance_count == 1
    assert "damaged" in caplog.text
