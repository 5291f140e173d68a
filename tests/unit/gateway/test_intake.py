from __future__ import annotations

import errno
import logging
import shutil
import sqlite3
import time
from datetime import UTC, datetime
from pathlib import Path

import pytest
from pydicom.dataset import Dataset
from pydicom.sequence import Sequence

from dicom_gateway import intake as intake_module
from dicom_gateway.completeness import Waiting
from dicom_gateway.intake import Intake, decide, idempotency_key
from dicom_gateway.ledger import Ledger
from dicom_gateway.open_groups import OpenGroups
from dicom_gateway.outbox import Outbox
from dicom_gateway.spool import Spool
from dicom_gateway.uid_key import UidKey
from flows_engine.handoff.fingerprint import FingerprintBuilder
from flows_engine.handoff.layout import Layout
from flows_engine.handoff.run_request import Sender
from flows_engine.handoff.study_store import StudyStore
from tests.fakes.definitions import FakeDefinitions, flow
from tests.fakes.instances import CANARIES, ct, received
from tests.fakes.run_trigger import FakeRunTrigger

SENDER = Sender(ae_title="PACS", host="10.0.0.1", port=104)
CT_FLOW = flow("A", {"Modality": "CT"})


class World:
    """An intake on its own folder; ``restart`` is what follows on a kill."""

    def __init__(
        self,
        folder: Path,
        *,
        hold_incomplete=True,
        definitions=None,
        group_by="association",
        late_arrival=None,
        on_conflict="keep_both",
    ):
        self.folder = folder
        self.group_by, self.late_arrival, self.on_conflict = group_by, late_arrival, on_conflict
        self.hold_incomplete = hold_incomplete
        self.trigger = FakeRunTrigger()
        self.definitions = definitions or FakeDefinitions(CT_FLOW)
        for name in ("spool", "studies"):
            (folder / name).mkdir()
        self.build()

    def build(self):
        self.ledger = Ledger(self.folder / "ledger.sqlite")
        self.spool = Spool(self.folder / "spool", layout=Layout([]), on_conflict=self.on_conflict)
        self.store = StudyStore(self.folder / "studies")
        self.intake = Intake(
            spool=self.spool,
            store=self.store,
            ledger=self.ledger,
            outbox=Outbox(self.ledger, self.trigger, self.definitions),
            definitions=self.definitions,
            uid_key=UidKey(b"the key of this test"),
            hold_incomplete=self.hold_incomplete,
            groups=OpenGroups(
                self.spool, group_by=self.group_by, waiting=Waiting(idle_seconds=0, incomplete_seconds=0)
            ),
            late_arrival=self.late_arrival,
        )

    def restart(self):
        self.ledger.close()
        self.build()
        self.intake.start()

    def receive(self, *datasets, complete=True):
        reception = self.open()
        for dataset in datasets:
            reception.store(received(dataset))
        if complete:
            reception.seal()
        reception.close()
        self.intake.finish(reception.id, complete=complete)
        self.intake.commit_ended()

    def open(self):
        return self.spool.open(sender=SENDER, called_ae_title="STORESCP", received_at=datetime(2024, 5, 6, tzinfo=UTC))

    def outcomes(self):
        return [study.outcome for study in self.ledger.studies()]

    def settled(self):
        studies = self.ledger.studies()
        return (
            bool(studies)
            and all(study.outcome != "received" for study in studies)
            and all(run.state != "pending" for study in studies for run in study.runs)
        )

    def close(self):
        self.intake.stop()
        self.ledger.close()


@pytest.fixture
def world(tmp_path):
    world = World(tmp_path)
    yield world
    world.close()


def wait_until(condition, *, seconds=10.0):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.005)


def test_a_study_goes_from_the_spool_to_a_run(world):
    world.intake.start()
    world.receive(ct(), ct())
    wait_until(world.settled)
    (study,) = world.ledger.studies()
    assert study.outcome == "triggered"
    assert study.reason == "matched A"
    (key,) = world.trigger.runs
    assert key == f"{study.study_id}:A:{CT_FLOW.digest[:16]}"
    request = world.trigger.requests[key]
    assert request.study_uri == (world.folder / "studies" / study.study_id).as_uri()
    assert request.definition == CT_FLOW
    assert len(list(world.store.input_folder(study.study_id).iterdir())) == 2
    assert world.store.record(study.study_id).instance_count == 2
    assert list((world.folder / "spool").iterdir()) == []


def test_a_study_that_matches_nothing_says_why(world):
    world.intake.start()
    world.receive(ct(Modality="MR"))
    wait_until(world.settled)
    (study,) = world.ledger.studies()
    assert study.outcome == "no-match"
    assert "Modality: none of 1 instances matches 'CT'" in study.explanation


def test_each_patient_is_a_study_of_its_own(world):
    world.intake.start()
    world.receive(ct(PatientID="a"), ct(PatientID="b"))
    wait_until(world.settled)
    assert world.outcomes() == ["triggered", "triggered"]
    assert len(world.trigger.runs) == 2


def test_several_flows_fire_each_as_its_own_run(tmp_path):
    world = World(
        tmp_path, definitions=FakeDefinitions(CT_FLOW, flow("B", {"Modality": "C"}), flow("C", {"Modality": "MR"}))
    )
    world.intake.start()
    world.receive(ct())
    wait_until(world.settled)
    assert sorted(request.definition.name for request in world.trigger.requests.values()) == ["A", "B"]
    world.close()


def test_an_incomplete_study_is_held_until_somebody_releases_it(world):
    world.intake.start()
    world.receive(ct(), complete=False)
    wait_until(world.settled)
    (study,) = world.ledger.studies()
    assert study.outcome == "held"
    assert f"dicomflow release {study.study_id}" in study.reason
    assert "1 instances" in study.reason
    elsewhere = Ledger(world.folder / "ledger.sqlite")
    elsewhere.release(study.study_id)
    elsewhere.close()
    wait_until(lambda: world.outcomes() == ["triggered"] and world.settled())
    assert len(world.trigger.runs) == 1


def test_an_incomplete_study_runs_where_the_site_wants_it(tmp_path):
    world = World(tmp_path, hold_incomplete=False)
    world.intake.start()
    world.receive(ct(), complete=False)
    wait_until(world.settled)
    assert world.outcomes() == ["triggered"]
    assert not world.ledger.studies()[0].complete
    world.close()


def test_killed_with_an_association_open(world):
    reception = world.open()
    reception.store(received(ct()))
    world.restart()
    wait_until(world.settled)
    assert world.outcomes() == ["held"]
    assert list((world.folder / "spool").iterdir()) == []


@pytest.mark.parametrize("step", ["write_record", "rename", "ledger.add", "tidy"])
def test_killed_anywhere_on_the_way_to_the_ledger(world, monkeypatch, step):
    class Killed(BaseException):
        pass

    def die(*_arguments, **_named):
        raise Killed

    with monkeypatch.context() as patch:
        if step == "rename":
            real = Path.rename
            patch.setattr(
                Path, "rename", lambda self, target: die() if "studies" in str(target) else real(self, target)
            )
        elif step == "ledger.add":
            patch.setattr(world.ledger, "add", die)
        else:
            patch.setattr(intake_module, step, die)
        with pytest.raises(Killed):
            world.receive(ct(), ct(PatientID="other"))
    world.restart()
    wait_until(world.settled)
    studies = world.ledger.studies()
    assert len(studies) == 2
    assert sum(study.instance_count for study in studies) == 2
    assert [study.outcome for study in studies] == ["triggered"] * 2
    assert list((world.folder / "spool").iterdir()) == []
    assert sorted(path.name for path in (world.folder / "studies").iterdir()) == sorted(
        study.study_id for study in studies
    )


def test_killed_during_recovery_as_well(world, monkeypatch):
    reception = world.open()
    for patient in "abc":
        reception.store(received(ct(PatientID=patient)))
    for _ in range(3):
        with monkeypatch.context() as patch:
            patch.setattr(intake_module, "tidy", lambda _folder: (_ for _ in ()).throw(KeyboardInterrupt))
            with pytest.raises(KeyboardInterrupt):
                world.restart()
    world.restart()
    wait_until(world.settled)
    assert len(world.ledger.studies()) == 3
    assert len(list((world.folder / "studies").iterdir())) == 3


def test_a_flow_may_ask_for_what_lies_in_a_sequence(world):
    key = "RequestAttributesSequence.ScheduledProcedureStepDescription"
    world.definitions.by_name = {
        name: flow(name, {key: pattern}) for name, pattern in (("Head", "^Head$"), ("Knee", "^Knee$"))
    }
    step = Dataset()
    step.ScheduledProcedureStepDescription = "Head"
    world.intake.start()
    world.receive(ct(RequestAttributesSequence=Sequence([step])))
    wait_until(world.settled)
    assert [request.definition.name for request in world.trigger.requests.values()] == ["Head"]


def test_killed_between_the_decision_and_the_run(world):
    world.receive(ct())
    (study_id,) = world.store.study_ids()
    decision = decide(
        world.store.record(study_id),
        study_uri="file:///x",
        definitions=world.definitions.snapshot(),
        store=world.store,
        hold=True,
    )
    world.ledger.decide(study_id, decision)
    assert world.trigger.calls == []
    world.restart()
    wait_until(world.settled)
    assert len(world.trigger.runs) == 1


def test_a_restart_triggers_nothing_again(world):
    world.intake.start()
    world.receive(ct())
    wait_until(world.settled)
    world.intake.stop()
    world.restart()
    world.receive(ct(PatientID="other"))
    wait_until(lambda: world.settled() and len(world.ledger.studies()) == 2)
    assert len(world.trigger.calls) == 2


def test_a_lost_ledger_is_filled_from_the_store_and_runs_nothing_again(world):
    world.receive(ct())
    world.ledger.close()
    for path in world.folder.glob("ledger.sqlite*"):
        path.unlink()
    world.build()
    world.intake.start()
    wait_until(world.settled)
    (study,) = world.ledger.studies()
    assert study.outcome == "held"
    assert (
        f"the ledger did not know it, so it may have run before; `dicomflow release {study.study_id}`" in study.reason
    )
    assert world.trigger.calls == []
    world.ledger.release(study.study_id)
    wait_until(lambda: len(world.trigger.runs) == 1)


def test_a_damaged_record_stops_nothing_else(world, caplog):
    damaged = world.folder / "studies" / "0193e4c2-7a54-7cc3-98c4-dc0c0c07dead"
    damaged.mkdir()
    (damaged / "study.json").write_bytes(b"{")
    world.intake.start()
    world.receive(ct())
    wait_until(world.settled)
    assert sorted(world.outcomes()) == ["held", "triggered"]
    assert "is damaged" in world.ledger.study(damaged.name).reason
    assert "damaged" in caplog.text


def test_the_record_of_another_study_is_held_and_not_entered_again(world):
    world.receive(ct())
    (study_id,) = world.store.study_ids()
    copy = world.folder / "studies" / "0193e4c2-7a54-7cc3-98c4-dc0c0c07c0b1"
    shutil.copytree(world.store.folder(study_id), copy)
    world.restart()
    wait_until(world.settled)
    assert world.ledger.study(copy.name).outcome == "held"
    assert "another study" in world.ledger.study(copy.name).reason
    assert world.ledger.study(study_id).outcome == "triggered"


@pytest.mark.parametrize("error", [PermissionError(13, "CANARY"), RuntimeError("CANARY")])
def test_a_study_whose_decision_fails_is_held_and_stops_no_other(world, monkeypatch, caplog, error):
    world.receive(ct())
    (broken,) = world.store.study_ids()
    world.receive(ct())
    real = StudyStore.record

    def record(store, study_id):
        if study_id == broken:
            raise error
        return real(store, study_id)

    monkeypatch.setattr(StudyStore, "record", record)
    world.intake.start()
    wait_until(world.settled)
    assert sorted(world.outcomes()) == ["held", "triggered"]
    reason = world.ledger.study(broken).reason
    assert reason == f"no decision was reached ({type(error).__name__}); `dicomflow release {broken}` decides again"
    assert "CANARY" not in caplog.text


def test_a_study_whose_fingerprint_fails_is_kept_and_held(tmp_path, monkeypatch):
    world = World(tmp_path, hold_incomplete=False)
    world.intake.start()
    with monkeypatch.context() as patch:
        patch.setattr(FingerprintBuilder, "build", lambda _builder: (_ for _ in ()).throw(MemoryError))
        world.receive(ct())
    wait_until(world.settled)
    (study,) = world.ledger.studies()
    assert (study.outcome, study.instance_count) == ("held", 1)
    assert "MemoryError" in study.reason
    assert len(list(world.store.input_folder(study.study_id).iterdir())) == 1
    world.close()


def test_a_group_that_cannot_be_rebuilt_is_held_and_stops_no_start(tmp_path, monkeypatch):
    world = World(tmp_path, hold_incomplete=False)
    world.open().store(received(ct()))
    with monkeypatch.context() as patch:
        patch.setattr(FingerprintBuilder, "add", lambda _builder, _header: (_ for _ in ()).throw(MemoryError))
        world.restart()
    wait_until(world.settled)
    (study,) = world.ledger.studies()
    assert (study.outcome, study.instance_count) == ("held", 1)
    assert len(list(world.store.input_folder(study.study_id).iterdir())) == 1
    world.close()


def test_a_record_that_is_damaged_before_it_is_decided_on_is_held_and_stops_nothing_else(world):
    world.receive(ct())
    (study_id,) = world.store.study_ids()
    (world.store.folder(study_id) / "study.json").write_bytes(b"{")
    world.receive(ct())
    world.intake.start()
    wait_until(world.settled)
    assert sorted(world.outcomes()) == ["held", "triggered"]


def test_a_study_whose_files_are_gone_is_held(world):
    world.receive(ct())
    (study_id,) = world.store.study_ids()
    (world.store.folder(study_id) / "study.json").unlink()
    world.intake.start()
    wait_until(world.settled)
    assert world.outcomes() == ["held"]


def test_a_disk_that_is_full_at_the_end_is_waited_for(world, monkeypatch):
    world.intake.start()
    real, full = intake_module.write_record, [True]

    def write_record(study):
        if full[0]:
            raise OSError(errno.ENOSPC, "No space left on device")
        real(study)

    monkeypatch.setattr(intake_module, "write_record", write_record)
    world.receive(ct())
    assert world.ledger.studies() == ()
    full[0] = False
    wait_until(world.settled)
    (study,) = world.ledger.studies()
    assert (study.outcome, study.complete) == ("triggered", True)


def test_a_ledger_that_cannot_be_written_for_a_moment_holds_no_study(world, monkeypatch):
    real, failures = Ledger.decide, []

    def decide(ledger, study_id, decision):
        if not failures:
            failures.append(study_id)
            raise sqlite3.OperationalError("database or disk is full")
        real(ledger, study_id, decision)

    monkeypatch.setattr(Ledger, "decide", decide)
    world.intake.start()
    world.receive(ct())
    wait_until(world.settled)
    assert failures
    assert world.outcomes() == ["triggered"]


def test_definitions_are_those_of_the_moment(world):
    world.definitions.by_name = {}
    world.intake.start()
    world.receive(ct())
    wait_until(world.settled)
    (study,) = world.ledger.studies()
    assert study.outcome == "held"
    assert study.reason == f"no flow definition is in force; `dicomflow release {study.study_id}` decides again"
    world.definitions.by_name = {"A": CT_FLOW}
    world.ledger.release(study.study_id)
    world.receive(ct())
    wait_until(lambda: len(world.ledger.studies()) == 2 and world.settled())
    assert world.outcomes() == ["triggered", "triggered"]


def test_no_patient_is_named_in_a_log_or_the_ledger(world, caplog):
    caplog.set_level(logging.DEBUG)
    world.intake.start()
    world.receive(ct(), ct(SeriesDescription="CANARY two"), complete=True)
    world.receive(ct(PatientID="CANARY-2", Modality="MR"), complete=False)
    wait_until(lambda: len(world.ledger.studies()) == 2 and world.settled())
    told = caplog.text + repr(world.ledger.studies()) + "".join(map(repr, world.trigger.requests.values()))
    told += "".join(str(record.__dict__) for record in caplog.records)
    assert not [canary for canary in CANARIES if canary in told]


def test_a_key_names_study_flow_and_content():
    other = flow("A", {"Modality": "MR"})
    assert idempotency_key("s", CT_FLOW) != idempotency_key("s", other)
    assert idempotency_key("s", CT_FLOW) == idempotency_key("s", flow("A", {"Modality": "CT"}))


@pytest.fixture
def make_late(tmp_path):
    """Return a maker of worlds in which a study may come in pieces, each closed at once."""
    worlds = []

    def make(late_arrival="rerun", **options):
        worlds.append(World(tmp_path, group_by="study", late_arrival=late_arrival, **options))
        worlds[-1].intake.start()
        return worlds[-1]

    yield make
    for world in worlds:
        world.close()


def received_now(world, *datasets, **options):
    """Receive, and return the newest study once it is decided on."""
    count = len(world.ledger.studies())
    world.receive(*datasets, **options)
    wait_until(lambda: len(world.ledger.studies()) > count and world.settled())
    return world.ledger.studies()[0]


def test_what_comes_late_makes_a_new_version_of_all_that_came(make_late):
    world = make_late()
    first = received_now(world, ct(), ct())
    second = received_now(world, ct())
    assert (second.instance_count, second.outcome) == (3, "triggered")
    record = world.store.record(second.study_id)
    assert (record.earlier_study_id, record.new_instance_count) == (first.study_id, 1)
    old, new = (
        {path.name: path for path in world.store.input_folder(one.study_id).iterdir()} for one in (first, second)
    )
    assert old.keys() < new.keys()
    # The same files under a second name: a version costs no room.
    assert all(path.samefile(new[name]) for name, path in old.items())
    third = received_now(world, ct())
    assert world.store.record(third.study_id).earlier_study_id == second.study_id
    assert third.instance_count == 4
    assert [request.reason for request in world.trigger.requests.values()] == [
        "received",
        "late-arrival",
        "late-arrival",
    ]


def test_what_had_come_before_runs_nothing_again(make_late):
    world = make_late()
    datasets = [ct(), ct()]
    first = received_now(world, *datasets)
    again = received_now(world, *datasets)
    assert again.outcome == "no-match"
    assert f"all of it had come before, as study {first.study_id}" in again.reason
    assert len(world.trigger.runs) == 1
    record = world.store.record(again.study_id)
    assert (record.instance_count, record.duplicate_count, record.new_instance_count) == (2, 2, 0)


def test_late_instances_are_kept_and_not_run_where_a_site_wants_it(make_late):
    world = make_late("ignore")
    first = received_now(world, ct())
    late = received_now(world, ct())
    assert (late.outcome, late.instance_count) == ("no-match", 1)
    assert f"it came after study {first.study_id} was closed" in late.reason
    world.ledger.release(late.study_id)
    wait_until(lambda: len(world.trigger.runs) == 2)


def test_late_instances_are_a_study_of_their_own_where_a_site_wants_it(make_late):
    world = make_late("new")
    received_now(world, ct())
    late = received_now(world, ct())
    assert (late.outcome, late.instance_count) == ("triggered", 1)


def test_late_instances_of_another_patient_never_join_the_first(make_late):
    world = make_late()
    received_now(world, ct())
    received_now(world, ct(PatientID="another"))
    assert len(world.ledger.studies()) == 2
    for study in world.ledger.studies():
        patients = world.store.record(study.study_id).fingerprint.columns["00100020"].values
        assert len(patients) == 1


def test_what_comes_of_another_patient_of_the_same_study_uid_settles_nothing(make_late):
    world = make_late()
    held = received_now(world, ct(PatientID="one"), complete=False)
    other = received_now(world, ct(PatientID="another"))
    assert (other.outcome, other.instance_count) == ("triggered", 1)
    assert world.store.record(other.study_id).earlier_study_id == ""
    assert [study.study_id for study in world.ledger.studies()] == [other.study_id, held.study_id]
    assert world.ledger.study(held.study_id).outcome == "held"
    assert len(world.trigger.runs) == 1


@pytest.mark.parametrize("late_arrival", ["rerun", "ignore"])
def test_late_instances_find_the_study_of_their_patient_however_many_share_its_uid(make_late, late_arrival):
    world = make_late(late_arrival)
    first = received_now(world, ct(PatientID="one"), ct(PatientID="one"))
    other = received_now(world, ct(PatientID="another"))
    assert other.outcome == "triggered"
    late = received_now(world, ct(PatientID="one"))
    assert world.store.record(late.study_id).earlier_study_id == first.study_id
    assert late.instance_count == (3 if late_arrival == "rerun" else 1)
    assert len(world.ledger.studies()) == 3


def test_late_instances_of_two_patients_each_find_their_own(make_late):
    world = make_late()
    first = received_now(world, ct(PatientID="one"))
    other = received_now(world, ct(PatientID="one", PatientName="Another^One", PatientBirthDate="19990909"))
    world.receive(
        ct(PatientID="one"), ct(PatientID="one", PatientName="Another^One", PatientBirthDate="19990909"), complete=True
    )
    wait_until(lambda: len(world.ledger.studies()) == 4 and world.settled())
    newest = [world.store.record(study.study_id) for study in world.ledger.studies()[:2]]
    assert {record.earlier_study_id for record in newest} == {first.study_id, other.study_id}
    assert [record.instance_count for record in newest] == [2, 2]


def test_an_incomplete_study_waits_for_nobody_once_the_rest_has_come(make_late):
    world = make_late()
    first = received_now(world, ct(), complete=False)
    assert first.outcome == "held"
    whole = received_now(world, ct())
    assert (whole.outcome, whole.instance_count, whole.complete) == ("triggered", 2, True)
    first = world.ledger.study(first.study_id)
    assert first.outcome == "no-match"
    assert whole.study_id in first.reason


def test_a_study_whose_files_are_gone_is_no_earlier_one(make_late):
    world = make_late()
    first = received_now(world, ct())
    shutil.rmtree(world.store.folder(first.study_id))
    late = received_now(world, ct())
    assert (late.outcome, late.instance_count) == ("triggered", 1)


@pytest.mark.parametrize(("on_conflict", "count", "kept"), [("keep_both", 2, {"a", "b"}), ("replace", 1, {"b"})])
def test_another_content_under_a_uid_of_the_earlier_version(make_late, on_conflict, count, kept):
    world = make_late(on_conflict=on_conflict)
    first = received_now(world, ct(SOPInstanceUID="1.2.3", SeriesDescription="a"))
    second = received_now(world, ct(SOPInstanceUID="1.2.3", SeriesDescription="b"))
    record = world.store.record(second.study_id)
    assert (record.instance_count, record.conflict_count) == (count, 1)
    assert {value for (value,) in record.fingerprint.columns["0008103E"].values} == kept
    assert len(list(world.store.input_folder(first.study_id).iterdir())) == 1


def test_a_held_study_that_is_sent_again_whole_runs(make_late):
    world = make_late()
    datasets = [ct(), ct()]
    assert received_now(world, *datasets, complete=False).outcome == "held"
    again = received_now(world, *datasets)
    assert (again.outcome, again.instance_count) == ("triggered", 2)
    assert len(world.trigger.runs) == 1


@pytest.mark.parametrize("step", ["link", "collect", "write_record", "rename"])
def test_a_late_arrival_whose_closing_is_cut_short_is_late_all_the_same(make_late, monkeypatch, step):
    world = make_late()
    datasets = [ct(), ct()]
    first = received_now(world, *datasets)
    world.intake.stop()

    class Killed(BaseException):
        pass

    def die(*_arguments, **_named):
        raise Killed

    with monkeypatch.context() as patch:
        if step == "rename":
            real = Path.rename
            patch.setattr(
                Path, "rename", lambda self, target: die() if "studies" in str(target) else real(self, target)
            )
        elif step == "write_record":
            patch.setattr(intake_module, step, die)
        else:
            patch.setattr(world.spool, step, die)
        with pytest.raises(Killed):
            world.receive(*datasets)
    world.restart()
    wait_until(lambda: len(world.ledger.studies()) == 2 and world.settled())
    again = world.ledger.studies()[0]
    assert (again.outcome, again.instance_count) == ("no-match", 2)
    assert first.study_id in again.reason
    assert len(world.trigger.runs) == 1
