from __future__ import annotations

import pytest
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian

from dicom_gateway.association_store import AssociationStore
from dicom_gateway.dimse_command import StoreRequest
from dicom_gateway.errors import InstanceRefusedError, SpoolFullError
from tests.fakes.instances import CANARY_NAME

FAILURES = [
    (SpoolFullError("full"), 0xA700),
    (InstanceRefusedError("cut", status=0xC000), 0xC000),
    (ValueError(CANARY_NAME), 0x0110),
]
NO_UIDS = ["../../etc/x", "", None, "9" * 200, "1.2.é"]


class FakeIncoming:
    def __init__(self, reception):
        self.reception = reception
        self.content = b""

    def write(self, fragment):
        self.reception.fail_at("write")
        self.content += fragment

    def end(self):
        self.reception.fail_at("end")

    def make_whole(self):
        self.reception.fail_at("make_whole")

    def commit(self):
        self.reception.fail_at("commit")
        self.reception.stored.append(self.content)

    def discard(self):
        self.reception.discarded += 1


class FakeReception:
    def __init__(self, failure, step):
        self.failure, self.step = failure, step
        self.stored, self.discarded, self.is_sealed, self.is_closed = [], 0, False, False

    def fail_at(self, step):
        if step == self.step:
            raise self.failure

    def begin(self, **_uids):
        self.fail_at("begin")
        return FakeIncoming(self)

    def store(self, instance):
        self.fail_at("store")
        self.stored.append(instance.data_set)

    def seal(self):
        self.fail_at("seal")
        self.is_sealed = True

    def close(self):
        self.is_closed = True


@pytest.fixture
def make_store():
    """Return a maker of stores; ``opened`` of each has its receptions."""

    def make(failure=None, step=None):
        opened = []

        def open_reception():
            opened.append(FakeReception(failure, step))
            return opened[-1]

        store = AssociationStore(open_reception)
        store.transfer_syntaxes = {1: ExplicitVRLittleEndian}
        store.opened = opened
        return store

    return make


def request(*, sop_class=CTImageStorage, uid="1.2.3"):
    sop_class, uid = ((text or "").encode("utf-8") for text in (sop_class, uid))
    return StoreRequest(message_id=7, sop_class_uid=sop_class, sop_instance_uid=uid)


def store_whole(store, *, sop_class=CTImageStorage, uid="1.2.3"):
    return store.store(
        sop_class_uid=sop_class, sop_instance_uid=uid, transfer_syntax_uid=ExplicitVRLittleEndian, data_set=b"xyz"
    )


def store_in_fragments(store, **uids):
    instance = store.begin(request(**uids), 1)
    for fragment in (b"x", b"yz"):
        instance.write(memoryview(fragment))
    return instance.finish()


@pytest.fixture(params=[store_whole, store_in_fragments])
def store_one(request):
    return request.param


def test_what_an_association_stores_is_one_reception(make_store, store_one):
    store = make_store()
    assert [store_one(store) for _ in range(3)] == [0x0000] * 3
    (reception,) = store.opened
    assert reception.stored == [b"xyz"] * 3
    assert store.seal()
    store.close()
    assert (reception.is_sealed, reception.is_closed) == (True, True)


@pytest.mark.parametrize("uid", NO_UIDS)
def test_a_command_without_a_uid_is_refused(make_store, store_one, uid):
    store = make_store()
    assert store_one(store, uid=uid) == 0xA900
    assert store_one(store, sop_class=uid) == 0xA900
    assert store.opened == []


@pytest.mark.parametrize(("failure", "status"), FAILURES)
def test_a_failure_is_never_a_success_and_names_no_patient(make_store, caplog, failure, status):
    assert store_whole(make_store(failure, "store")) == status
    for step in ("begin", "write", "commit"):
        store = make_store(failure, step)
        assert store_in_fragments(store) == status
        assert store.opened[0].stored == []
        assert store.opened[0].discarded == (step != "begin")
    assert len(caplog.records) == 4
    assert CANARY_NAME not in caplog.text


@pytest.mark.parametrize("step", ["end", "make_whole", "commit"])
@pytest.mark.parametrize(("failure", "status"), FAILURES)
def test_of_several_at_once_one_that_fails_takes_no_other_along(make_store, caplog, failure, status, step):
    store = make_store()
    instances = []
    for number in range(3):
        instances.append(store.begin(request(), 1))
        instances[-1].write(memoryview(b"%d" % number))
        store.opened[0].failure, store.opened[0].step = failure, step if number == 1 else None
        instances[-1].end()
    for number, instance in enumerate(instances):
        store.opened[0].step = step if number == 1 else None
        instance.make_whole()
    statuses = []
    for number, instance in enumerate(instances):
        store.opened[0].step = step if number == 1 else None
        statuses.append(instance.finish())
    assert statuses == [0x0000, status, 0x0000]
    assert store.opened[0].stored == [b"0", b"2"]
    assert store.opened[0].discarded == 1
    assert len(caplog.records) == 1
    assert CANARY_NAME not in caplog.text


def test_an_instance_whose_end_does_not_come_is_discarded(make_store):
    store = make_store()
    instance = store.begin(request(), 1)
    instance.write(memoryview(b"x"))
    instance.abandon()
    assert (store.opened[0].stored, store.opened[0].discarded) == ([], 1)


def test_a_release_that_is_not_safe_is_told(make_store):
    store = make_store(SpoolFullError("full"), "seal")
    store_whole(store)
    assert not store.seal()


def test_an_association_that_stored_nothing_ends_without_a_trace(make_store):
    store = make_store()
    assert store.seal()
    store.close()
    assert store.opened == []
