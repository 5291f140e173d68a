from __future__ import annotations

import errno
import os
import stat
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path

import pytest
from pydantic import ValidationError
from pydicom.uid import ExplicitVRLittleEndian, generate_uid

from dicom_gateway import durable_files
from dicom_gateway.errors import SpoolFullError
from dicom_gateway.reception import Origin
from dicom_gateway.spool import Spool, tidy, write_record
from flows_engine.handoff.layout import Layout
from flows_engine.handoff.run_request import Sender
from tests.fakes.instances import CANARIES, as_file, ct, received

NOW = datetime(2024, 5, 6, tzinfo=UTC)


@pytest.fixture
def spool(tmp_path):
    return Spool(tmp_path, layout=Layout([]))


def open_reception(spool):
    return spool.open(
        sender=Sender(ae_title="PACS", host="10.0.0.1", port=1), called_ae_title="STORESCP", received_at=NOW
    )


def collect(spool, reception, *, complete=True):
    """Return the studies of a reception that ends."""
    reception.close()
    return spool.collect(reception.id, complete=complete)


def leftovers(spool):
    """Return the studies of all that lies in a spool, as a gateway that starts finds them."""
    found = [study for one in spool.ids() for study in spool.collect(one, complete=spool.is_released(one))]
    for folder in list(spool.root.iterdir()):
        tidy(folder)
    return found


def files_below(folder):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def test_nothing_is_on_disk_before_the_first_instance(spool, tmp_path):
    assert collect(spool, open_reception(spool)) == ()
    assert list(tmp_path.iterdir()) == []


def test_an_instance_is_kept_byte_for_byte(spool):
    instance = received(ct())
    reception = open_reception(spool)
    reception.store(instance)
    (study,) = collect(spool, reception)
    path = study.folder / "input" / f"{instance.sop_instance_uid}.dcm"
    assert path.read_bytes() == as_file(instance)
    assert stat.S_IMODE(path.stat().st_mode) == 0o644
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o755
    assert stat.S_IMODE(study.folder.parent.stat().st_mode) == 0o700


def test_the_record_tells_who_sent_what(spool):
    reception = open_reception(spool)
    instances = [received(ct()) for _ in range(3)]
    for instance in instances:
        reception.store(instance)
    (study,) = collect(spool, reception)
    assert study.record.instance_count == 3
    assert study.record.size_bytes == sum(len(as_file(one)) for one in instances)
    assert study.record.sender.ae_title == "PACS"
    assert study.record.called_ae_title == "STORESCP"
    assert study.record.received_at == NOW
    assert study.record.complete
    assert study.record.fingerprint.instance_count == 3


def test_patients_are_never_mixed_and_their_folders_do_not_name_them(spool):
    reception = open_reception(spool)
    for patient in ("A", "B", "A", "B", "C"):
        reception.store(received(ct(PatientID=f"CANARY-{patient}")))
    studies = collect(spool, reception)
    assert sorted(study.record.instance_count for study in studies) == [1, 2, 2]
    assert len({study.record.study_id for study in studies}) == 3
    for study in studies:
        assert len(study.record.fingerprint.columns["00100020"].values) == 1
        assert not any(canary in str(study.folder) for canary in CANARIES)


def test_the_same_instance_twice_is_kept_once(spool):
    instance = received(ct())
    reception = open_reception(spool)
    for _ in range(2):
        reception.store(instance)
    (study,) = collect(spool, reception)
    assert (study.record.instance_count, study.record.duplicate_count, study.record.conflict_count) == (1, 1, 0)


def test_other_content_under_the_same_uid_is_kept_beside(spool):
    uid = str(generate_uid())
    reception = open_reception(spool)
    versions = [received(ct(SOPInstanceUID=uid, SeriesDescription=text)) for text in ("a", "b", "c")]
    for version in [*versions[:2], versions[0], versions[2], versions[1]]:
        reception.store(version)
    (study,) = collect(spool, reception)
    contents = {path.name: path.read_bytes() for path in (study.folder / "input").iterdir()}
    expected = zip([f"{uid}.dcm", f"{uid}_2.dcm", f"{uid}_3.dcm"], versions, strict=True)
    assert contents == {name: as_file(version) for name, version in expected}
    assert (study.record.instance_count, study.record.duplicate_count, study.record.conflict_count) == (3, 2, 2)


def test_the_layout_makes_folders_that_others_may_enter(tmp_path):
    spool = Spool(tmp_path, layout=Layout(["Modality", "SeriesDescription"]))
    reception = open_reception(spool)
    instance = received(ct(SeriesDescription="../../etc/x"))
    reception.store(instance)
    (study,) = collect(spool, reception)
    (path,) = (study.folder / "input").rglob("*.dcm")
    assert path.parent.parent == study.folder / "input" / "CT"
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o755


def test_a_full_disk_refuses_one_instance_and_harms_no_other(spool, monkeypatch):
    reception = open_reception(spool)
    kept = received(ct())
    reception.store(kept)
    real = os.writev

    def full(descriptor, contents):
        real(descriptor, [content[: len(content) // 2] for content in contents])
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "writev", full)
    with pytest.raises(SpoolFullError, match="No space left"):
        reception.store(received(ct()))
    with pytest.raises(SpoolFullError):
        reception.store(received(ct(PatientID="other")))
    monkeypatch.undo()
    (study,) = collect(spool, reception)
    assert files_below(study.folder) == [f"input/{kept.sop_instance_uid}.dcm"]
    assert sorted(path.name for path in study.folder.parent.iterdir()) == ["0", "reception.json"]


def test_a_disk_that_is_full_from_the_start_leaves_nothing(spool, tmp_path, monkeypatch):
    def full(*_arguments):
        raise OSError(errno.EDQUOT, "Disk quota exceeded")

    monkeypatch.setattr(os, "write", full)
    reception = open_reception(spool)
    with pytest.raises(SpoolFullError):
        reception.store(received(ct()))
    assert collect(spool, reception, complete=False) == ()
    assert list(tmp_path.iterdir()) == []


def test_what_was_collected_is_not_collected_twice(spool):
    reception = open_reception(spool)
    reception.store(received(ct()))
    (study,) = collect(spool, reception)
    write_record(study)
    assert spool.collect(reception.id, complete=False) == (study,)
    study.folder.rename(spool.root.parent / "gone")
    tidy(study.folder.parent)
    assert spool.collect(reception.id, complete=False) == ()


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
    studies = sorted(leftovers(spool), key=lambda study: study.record.instance_count)
    assert [study.record.instance_count for study in studies] == [1, 2]
    assert [study.record.conflict_count for study in studies] == [0, 1]
    assert not any(study.record.complete for study in studies)
    assert studies[0].record.sender.ae_title == "PACS"
    assert studies[1].record.fingerprint.columns["0008103E"].values == (("Head CANARY",), ("b",))


def test_the_fingerprint_is_the_same_after_a_restart(spool):
    reception = open_reception(spool)
    for _ in range(3):
        reception.store(received(ct()))
    (closed,) = collect(spool, reception)
    (recovered,) = leftovers(spool)
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
    (study,) = collect(spool, reception)
    write_record(study)
    assert list(leftovers(spool)) == [study]


def test_what_was_never_acknowledged_is_thrown_away(spool, tmp_path):
    reception = open_reception(spool)
    reception.store(received(ct()))
    folder = next(tmp_path.iterdir())
    half = reception.begin(sop_class_uid="1.2", sop_instance_uid="1.2.3", transfer_syntax_uid=ExplicitVRLittleEndian)
    half.write(memoryview(b"half an instance"))
    (folder / "7.part").write_bytes(b"of an older version")
    (folder / "1" / "input").mkdir(parents=True)
    (tmp_path / "empty-reception").mkdir()
    (tmp_path / "torn-reception").mkdir()
    (tmp_path / "torn-reception" / "reception.json.part").write_bytes(b"{")
    (study,) = leftovers(spool)
    assert study.folder == folder / "0"
    assert len(files_below(study.folder)) == 1
    assert sorted(path.name for path in folder.iterdir()) == ["0", "reception.json"]
    assert [path.name for path in tmp_path.iterdir()] == [folder.name]


def test_a_damaged_note_of_the_sender_loses_no_instance(spool, tmp_path):
    open_reception(spool).store(received(ct()))
    (next(tmp_path.iterdir()) / "reception.json").write_bytes(b"\0\0\0")
    (study,) = leftovers(spool)
    assert study.record.instance_count == 1
    assert study.record.sender.ae_title == "UNKNOWN"


def test_instances_without_a_note_of_the_sender_are_kept(spool, tmp_path):
    open_reception(spool).store(received(ct()))
    (next(tmp_path.iterdir()) / "reception.json").unlink()
    (study,) = leftovers(spool)
    assert study.record.instance_count == 1
    assert study.record.sender.ae_title == "UNKNOWN"
    assert not study.record.complete


def test_two_names_under_one_dummy_id_are_two_studies(spool):
    reception = open_reception(spool)
    for name in ("Doe^John", "DOE^JOHN^M", "Roe^Jane"):
        reception.store(received(ct(PatientID="ANONYMOUS", PatientName=name, PatientBirthDate="")))
    studies = collect(spool, reception)
    assert sorted(study.record.instance_count for study in studies) == [1, 2]


def test_what_is_wrong_with_a_note_of_the_sender_is_told_without_what_it_says():
    with pytest.raises(ValidationError) as caught:
        Origin.model_validate_json('{"sender": "CANARY"}')
    assert "CANARY" not in str(caught.value)


def test_a_damaged_instance_is_kept_by_itself_and_held(spool, tmp_path):
    reception = open_reception(spool)
    damaged = received(ct())
    for instance in (damaged, received(ct())):
        reception.store(instance)
    (path,) = tmp_path.rglob(f"{damaged.sop_instance_uid}.dcm")
    path.write_bytes(b"\0" * 500)
    held, good = sorted(collect(spool, reception), key=lambda study: not study.problem)
    assert (held.record.instance_count, good.record.instance_count) == (1, 1)
    assert held.problem.startswith("an instance of it cannot be read")
    assert not good.problem
    assert files_below(held.folder) == [f"input/{damaged.sop_instance_uid}.dcm"]


def test_what_the_sender_has_released_comes_back_as_complete(spool):
    for released in (True, False):
        reception = open_reception(spool)
        reception.store(received(ct()))
        if released:
            reception.seal()
    assert [study.record.complete for study in leftovers(spool)] == [True, False]


@pytest.mark.parametrize("cut_at", range(1, 12))
def test_a_collection_that_is_cut_short_anywhere_is_done_again(tmp_path, monkeypatch, cut_at):
    spool = Spool(tmp_path, layout=Layout(["SeriesDescription"]))
    reception, uid = open_reception(spool), str(generate_uid())
    datasets = [
        ct(SOPInstanceUID=uid),
        ct(SOPInstanceUID=uid, SeriesDescription="b"),
        ct(PatientID="other"),
        ct(SeriesDescription="b"),
    ]
    for dataset in datasets:
        reception.store(received(dataset))
    reception.seal()
    steps = iter(range(1, 1000))

    def cut(real):
        def call(*arguments, **named):
            if next(steps) == cut_at:
                raise KeyboardInterrupt
            return real(*arguments, **named)

        return call

    with monkeypatch.context() as patched, suppress(KeyboardInterrupt):
        for holder, name in ((Path, "rename"), (Path, "mkdir"), (durable_files, "sync_folder")):
            patched.setattr(holder, name, cut(getattr(holder, name)))
        collect(spool, reception)
    studies = sorted(leftovers(spool), key=lambda study: study.record.instance_count)
    assert [(one.record.instance_count, one.record.conflict_count) for one in studies] == [(1, 0), (3, 1)]
    kept = sorted(path.read_bytes() for study in studies for path in study.folder.rglob("*.dcm"))
    assert kept == sorted(as_file(received(dataset)) for dataset in datasets)


def test_what_an_older_version_left_is_collected(spool, tmp_path):
    reception = open_reception(spool)
    instance = received(ct())
    reception.store(instance)
    folder = tmp_path / reception.id
    (folder / "0" / "input" / "CT").mkdir(parents=True)
    (folder / "incoming" / f"{instance.sop_instance_uid}.dcm").rename(folder / "0" / "input" / "CT" / "1.2.dcm")
    (folder / "incoming").rmdir()
    (study,) = leftovers(spool)
    assert files_below(study.folder) == ["input/1.2.dcm"]
