from __future__ import annotations

import errno
from contextlib import suppress
from datetime import UTC, datetime

import pytest

from dicom_gateway import durable_files
from dicom_gateway.completeness import Waiting
from dicom_gateway.open_groups import DueGroup, OpenGroups
from dicom_gateway.spool import Spool
from flows_engine.handoff.run_request import Sender
from tests.fakes.instances import ct, received

IDLE, INCOMPLETE = 30, 300


class World:
    """A spool with its groups, and a clock."""

    def __init__(self, root, group_by="study"):
        self.now = 1_000_000.0
        self.spool = Spool(root, durability="none")
        self.group_by = group_by
        self.restart(restore=False)

    def restart(self, *, restore=True):
        self.groups = OpenGroups(
            self.spool,
            group_by=self.group_by,
            waiting=Waiting(idle_seconds=IDLE, incomplete_seconds=INCOMPLETE),
            clock=lambda: self.now,
        )
        if restore:
            self.groups.restore()

    def receive(self, *datasets, ae_title="CT1"):
        reception = self.spool.open(
            sender=Sender(ae_title=ae_title, host="10.0.0.1", port=1),
            called_ae_title="X",
            received_at=datetime(2024, 5, 6, tzinfo=UTC),
        )
        for dataset in datasets:
            reception.store(received(dataset))
        return reception

    def take(self, *datasets, is_complete=True, **sender):
        reception = self.receive(*datasets, **sender)
        reception.close()
        if is_complete:
            (self.spool.root / reception.id / "released").touch()
        self.groups.take(reception.id, is_complete=is_complete)

    def due(self, *open_receptions):
        return self.groups.due(open_receptions=[reception.id for reception in open_receptions])

    def close(self, due):
        studies = self.spool.collect(due.group_id, complete=due.is_complete)
        self.groups.closed(due.group_id)
        return sorted(study.record.instance_count for study in studies)


@pytest.fixture
def world(tmp_path):
    return World(tmp_path)


@pytest.fixture
def make_world(tmp_path):
    return lambda group_by: World(tmp_path, group_by)


def of(study, **values):
    return ct(StudyInstanceUID=study, **values)


def test_what_several_associations_send_of_a_study_is_one_group(world):
    for _ in range(3):
        world.take(of("1.1"), of("1.1"))
        world.now += IDLE - 1
    assert world.due() == []
    assert world.groups.asks_again_at == world.now + 1
    world.now += 1
    (due,) = world.due()
    assert due.is_complete
    assert world.close(due) == [6]
    assert world.due() == []
    assert world.groups.asks_again_at is None


def test_the_studies_of_an_association_are_groups_of_their_own(world):
    world.take(of("1.1"), of("1.2"), of("1.1"), of("1.3"))
    world.take(of("1.2"))
    world.now += IDLE
    assert sorted(world.close(due) for due in world.due()) == [[1], [2], [2]]
    assert list(world.spool.root.glob("*/incoming")) == []


def test_the_studies_of_a_patient_are_one_group_where_a_site_wants_it(make_world):
    world = make_world("patient")
    world.take(of("1.1"), of("1.2"))
    world.take(of("1.3"), of("1.4", PatientID="another"))
    world.now += IDLE
    assert sorted(world.close(due) for due in world.due()) == [[1], [3]]


def test_two_patients_in_one_study_are_never_one_group(world):
    world.take(of("1.1"), of("1.1", PatientID="another"))
    world.now += IDLE
    assert [world.close(due) for due in world.due()] == [[1], [1]]


def test_two_people_of_one_patient_id_and_study_are_one_group_and_never_one_study(world):
    world.take(of("1.1"), of("1.1", PatientName="Another^One"))
    world.now += IDLE
    (due,) = world.due()
    assert world.close(due) == [1, 1]


def test_what_comes_of_one_patient_completes_nothing_of_another_of_the_same_study(world):
    world.take(of("1.1"), is_complete=False)
    world.take(of("1.1", PatientID="another"))
    world.now += IDLE
    (due,) = world.due()
    assert (due.is_complete, world.close(due)) == (True, [1])
    world.now += INCOMPLETE
    (due,) = world.due()
    assert (due.is_complete, world.close(due)) == (False, [1])


def test_an_open_association_that_feeds_a_group_keeps_it_open(world):
    world.take(of("1.1"))
    feeding, other = world.receive(of("1.2"), of("1.1")), world.receive(of("1.3"))
    world.now += IDLE
    assert world.due(feeding, other) == []
    world.now += 10 * IDLE
    assert world.due(feeding, other) == []
    feeding.close()
    world.groups.take(feeding.id, is_complete=True)
    world.now += IDLE
    assert len(world.due(other)) == 2


def test_an_open_association_is_looked_at_again_for_what_came_since(world):
    world.take(of("1.1"))
    feeding = world.receive(of("1.2"))
    world.now += IDLE - 1
    assert world.due(feeding) == []
    feeding.store(received(of("1.1")))
    world.now += 1
    assert world.due(feeding) == []


def test_what_was_aborted_waits_longer_and_is_complete_once_its_sender_came_again(world):
    world.take(of("1.1"), is_complete=False)
    world.now += INCOMPLETE - 1
    assert world.due() == []
    world.take(of("1.1"), is_complete=True)
    world.now += IDLE
    (due,) = world.due()
    assert due.is_complete
    assert world.close(due) == [2]


def test_what_nobody_completes_is_closed_as_incomplete(world):
    world.take(of("1.1"), is_complete=False)
    world.now += INCOMPLETE
    (due,) = world.due()
    assert not due.is_complete


def test_where_an_association_is_a_study_it_is_closed_at_once(make_world):
    world = make_world("association")
    world.take(of("1.1"), of("1.2"))
    (due,) = world.due()
    assert world.close(due) == [2]


def test_an_aborted_association_is_joined_with_the_next_of_its_sender(make_world):
    world = make_world("association")
    world.take(of("1.1"), of("1.1"), is_complete=False)
    assert world.due() == []
    world.take(of("1.1"), ae_title="ANOTHER")
    world.take(of("1.2"))
    assert [world.close(due) for due in world.due()] == [[1], [1]]
    world.take(of("1.1"))
    (due,) = world.due()
    assert due.is_complete
    assert world.close(due) == [3]


def test_what_is_being_laid_out_is_not_joined_with_what_comes(make_world, monkeypatch):
    world = make_world("association")
    world.take(of("1.1"), of("1.1", PatientID="another"), is_complete=False)
    (group_id,) = world.spool.ids()
    world.now += INCOMPLETE
    assert len(world.due()) == 1
    real, made = durable_files.make_folder, []

    def full(folder, **options):
        if folder.parent.name == group_id:
            made.append(folder)
            if len(made) == 2:
                raise OSError(errno.ENOSPC, "No space left on device")
        real(folder, **options)

    with monkeypatch.context() as disk:
        disk.setattr(durable_files, "make_folder", full)
        with pytest.raises(OSError, match="No space left"):
            world.spool.collect(group_id, complete=False)
    assert len(list(world.spool.root.rglob("*.dcm"))) == 2
    world.take(of("1.1"), of("1.1", PatientID="another"))
    assert len(list(world.spool.root.rglob("*.dcm"))) == 4
    assert sorted(world.close(one) for one in world.due()) == [[1, 1], [1, 1]]


def test_groups_are_met_again_after_a_setting_was_changed(make_world):
    world = make_world("patient")
    world.take(of("1.1"))
    world.group_by = "study"
    world.restart()
    world.take(of("1.1"))
    world.now += IDLE
    (due,) = world.due()
    assert world.close(due) == [2]


def test_an_aborted_association_is_joined_only_as_far_as_its_patients_come_again(make_world):
    world = make_world("association")
    world.take(of("1.1"), of("1.2"), of("1.1", PatientID="another"), is_complete=False)
    world.take(of("1.1"))
    (due,) = world.due()
    assert (due.is_complete, world.close(due)) == (True, [3])
    world.restart()
    assert world.due() == [due]  # until it is in the store
    world.now += INCOMPLETE
    (left,) = set(world.due()) - {due}
    assert (left.is_complete, world.close(left)) == (False, [1])


def test_an_aborted_association_that_is_aborted_again_waits_on(make_world):
    world = make_world("association")
    for _ in range(2):
        world.take(of("1.1"), is_complete=False)
        world.now += INCOMPLETE - 1
        assert world.due() == []
    world.now += 1
    (due,) = world.due()
    assert not due.is_complete
    assert world.close(due) == [2]


@pytest.mark.parametrize("group_by", ["study", "patient"])
def test_groups_outlive_a_restart_with_their_time(make_world, group_by):
    world = make_world(group_by)
    world.take(of("1.1"))
    world.now += IDLE - 1
    world.restart()
    assert world.due() == []
    world.take(of("1.1"))
    world.now += IDLE
    (due,) = world.due()
    assert world.close(due) == [2]


def test_an_association_that_ended_with_its_gateway_counts_as_it_ended(world):
    for reception, is_released in ((world.receive(of("1.1")), True), (world.receive(of("1.2")), False)):
        if is_released:
            reception.seal()
        reception.close()
    world.restart()
    world.now += IDLE
    (due,) = world.due()
    assert due.is_complete
    world.now += INCOMPLETE
    assert sorted(due.is_complete for due in world.due()) == [False, True]


def test_a_group_whose_closing_was_cut_short_is_due_at_once(world):
    world.take(of("1.1"))
    (group_id,) = world.spool.ids()
    world.spool.collect(group_id, complete=True)
    world.restart()
    assert world.due() == [DueGroup(group_id=group_id, is_complete=True)]
    # What comes now is another group, and late.
    world.take(of("1.1"))
    assert len(world.spool.ids()) == 2


def test_a_reception_in_which_nothing_is_leaves_nothing(world):
    world.groups.take("0193e4c2-7a54-7cc3-98c4-dc0c0c07398f", is_complete=True)
    assert world.due() == []


@pytest.mark.parametrize("cut_at", range(1, 14))
def test_dealing_out_that_is_cut_short_anywhere_is_done_again(world, monkeypatch, cut_at):
    datasets = [of("1.1"), of("1.2"), of("1.2"), of("1.3")]
    world.take(of("1.1"))
    reception = world.receive(*datasets)
    reception.seal()
    reception.close()
    steps = iter(range(1, 1000))

    def cut(real):
        def call(*arguments, **named):
            if next(steps) == cut_at:
                raise OSError(28, "No space left on device")
            return real(*arguments, **named)

        return call

    with monkeypatch.context() as patched:
        for name in ("write_file", "make_folder", "sync_folder"):
            patched.setattr(durable_files, name, cut(getattr(durable_files, name)))
        with suppress(OSError):
            world.groups.take(reception.id, is_complete=True)
    world.restart()
    world.now += IDLE
    assert sorted(world.close(due) for due in world.due()) == [[1], [2], [2]]


def test_a_note_that_is_damaged_loses_no_instance(world):
    world.take(of("1.1"))
    (group_id,) = world.spool.ids()
    (world.spool.root / group_id / "group.json").write_bytes(b"\0")
    world.restart()
    world.now += IDLE
    (due,) = world.due()
    assert world.close(due) == [1]


def test_a_folder_of_the_spool_names_no_patient(world):
    world.take(of("1.1", PatientName="CANARY"), of("1.2"))
    names = [str(path.relative_to(world.spool.root)) for path in world.spool.root.rglob("*")]
    assert names
    assert not [name for name in names if "CANARY" in name or name == "1.1"]


def test_a_clock_that_was_set_back_costs_one_wait_at_most(world):
    world.take(of("1.1"))
    world.now -= 3600
    assert world.due() == []
    world.now += IDLE - 1
    assert world.due() == []
    world.now += 1
    assert len(world.due()) == 1


def test_what_one_sender_aborted_changes_nothing_for_others(make_world):
    world = make_world("association")
    world.take(of("1.1"), is_complete=False, ae_title="ANOTHER")
    parallel = world.receive(of("1.2"))
    world.take(of("1.2"))
    (due,) = world.due(parallel)
    assert world.close(due) == [1]
    parallel.close()
    world.groups.take(parallel.id, is_complete=True)
    (due,) = world.due()
    assert world.close(due) == [1]


def test_a_disk_that_cannot_be_read_for_one_group_stops_no_other(world, monkeypatch, caplog):
    world.take(of("1.1"))
    world.take(of("1.2"))
    open_one = world.receive(of("1.3"))
    world.now += IDLE
    real = world.spool.headers
    failing = iter([True])

    def headers(*arguments, **named):
        if next(failing, False):
            raise OSError(5, "Input/output error")
        return real(*arguments, **named)

    monkeypatch.setattr(world.spool, "headers", headers)
    assert len(world.due(open_one)) == 1
    assert "Input/output error" in caplog.text


def test_a_place_that_the_disk_could_not_take_is_not_left_behind(world, monkeypatch):
    real = durable_files.make_folder

    def make_folder(folder, **options):
        if folder.name == "incoming" and len(world.spool.ids()) > 1:
            raise OSError(errno.ENOSPC, "No space left on device")
        real(folder, **options)

    monkeypatch.setattr(durable_files, "make_folder", make_folder)
    with pytest.raises(OSError, match="No space"):
        world.take(of("1.1"), of("1.2"))
    assert len(world.spool.ids()) == 1


@pytest.mark.parametrize("group_by", ["association", "study"])
def test_a_reception_for_which_there_was_no_room_at_all_is_no_damaged_one(make_world, group_by, caplog):
    world = make_world(group_by)
    (world.spool.root / "r").mkdir()
    world.groups.take("r", is_complete=False)
    assert world.spool.collect("r", complete=False) == ()
    assert world.spool.ids() == []
    assert caplog.text == ""
