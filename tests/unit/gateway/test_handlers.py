from __future__ import annotations

from io import BytesIO
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian
from pynetdicom import evt
from pynetdicom.dsutils import create_file_meta

from dicom_gateway.errors import InstanceRefusedError, SpoolFullError
from dicom_gateway.handlers import Handlers, is_uid
from tests.fakes.instances import CANARY_NAME, ct, encoded


class FakeReception:
    def __init__(self, failure=None):
        self.failure = failure
        self.stored = []

    def store(self, instance):
        if self.failure is not None:
            raise self.failure
        self.stored.append(instance)
        return "stored"


class FakeIntake:
    def __init__(self):
        self.opened, self.finished, self.failure = [], [], None

    def open(self, *, sender, called_ae_title):
        self.opened.append((sender, called_ae_title))
        return FakeReception(self.failure)

    def finish(self, reception, *, complete):
        self.finished.append((reception, complete))


class FakeAssociation:
    def __init__(self, calling="PACS", *, alive=True):
        self.alive = alive
        self.requestor = SimpleNamespace(
            ae_title=f"{calling} ",
            address_info=SimpleNamespace(address="10.0.0.1", port=4242),
            primitive=SimpleNamespace(called_ae_title="STORESCP "),
        )

    def is_alive(self):
        return self.alive


@pytest.fixture
def intake():
    return FakeIntake()


@pytest.fixture
def handle(intake):
    """Return a function that has the handlers handle one event."""
    handlers = Handlers(intake)
    bound = dict(handlers.bindings())

    def call(event, **attributes):
        return bound[event](SimpleNamespace(**attributes))

    call.handlers = handlers
    return call


def store_event(association, *, uid="1.2.3", sop_class=CTImageStorage):
    dataset = ct(SOPInstanceUID="1.2.3")
    return {
        "assoc": association,
        "request": SimpleNamespace(
            AffectedSOPInstanceUID=uid, AffectedSOPClassUID=sop_class, DataSet=BytesIO(encoded(dataset))
        ),
        "context": SimpleNamespace(transfer_syntax=ExplicitVRLittleEndian),
        "file_meta": create_file_meta(
            sop_class_uid=CTImageStorage, sop_instance_uid="1.2.3", transfer_syntax=ExplicitVRLittleEndian
        ),
    }


@pytest.mark.parametrize("uid", ["1", "1.2.840.10008", "0.1", "1.02.3", "1" * 64])
def test_a_uid_is_digits_and_dots(uid):
    assert is_uid(uid)


@pytest.mark.parametrize(
    "uid", [None, "", ".", "1.", ".1", "1..2", "../../etc/x", "1" * 65, "1.2.é", "1.2\n", "1.2 ", "\u0661.\u0662"]
)
def test_hostile_text_is_no_uid(uid):
    assert not is_uid(uid)


@given(st.text(max_size=80))
def test_a_uid_is_always_a_harmless_file_name(text):
    if is_uid(text):
        assert set(text) <= set("0123456789.")
        assert 0 < len(text) <= 64
        assert not text.startswith(".")


def test_an_echo_is_a_success(handle):
    assert handle(evt.EVT_C_ECHO) == 0x0000


def test_an_instance_is_stored_with_its_sender(handle, intake):
    association = FakeAssociation()
    assert handle(evt.EVT_C_STORE, **store_event(association)) == 0x0000
    ((sender, called),) = intake.opened
    assert (sender.ae_title, sender.host, sender.port, called) == ("PACS", "10.0.0.1", 4242, "STORESCP")


def test_one_association_is_one_reception(handle, intake):
    association = FakeAssociation()
    for _ in range(3):
        handle(evt.EVT_C_STORE, **store_event(association))
    handle(evt.EVT_C_STORE, **store_event(FakeAssociation()))
    assert len(intake.opened) == 2


@pytest.mark.parametrize("uid", ["../../etc/x", "", None, "9" * 200, "1.2.é"])
def test_a_command_without_a_uid_is_refused(handle, intake, uid):
    assert handle(evt.EVT_C_STORE, **store_event(FakeAssociation(), uid=uid)) == 0xA900
    assert handle(evt.EVT_C_STORE, **store_event(FakeAssociation(), sop_class=uid)) == 0xA900
    assert intake.opened == []


@pytest.mark.parametrize(
    ("failure", "status"),
    [
        (SpoolFullError("full"), 0xA700),
        (InstanceRefusedError("cut", status=0xC000), 0xC000),
        (ValueError(CANARY_NAME), 0x0110),
    ],
)
def test_a_failure_is_never_a_success_and_names_no_patient(handle, intake, caplog, failure, status):
    intake.failure = failure
    assert handle(evt.EVT_C_STORE, **store_event(FakeAssociation())) == status
    assert caplog.records
    assert CANARY_NAME not in caplog.text


@pytest.mark.parametrize(("event", "complete"), [(evt.EVT_RELEASED, True), (evt.EVT_ABORTED, False)])
def test_an_association_ends_once(handle, intake, event, complete):
    association = FakeAssociation()
    handle(evt.EVT_C_STORE, **store_event(association))
    handle(event, assoc=association)
    handle(evt.EVT_ABORTED, assoc=association)
    handle.handlers.end_all()
    assert [ended for _, ended in intake.finished] == [complete]


def test_an_association_that_stored_nothing_ends_without_a_trace(handle, intake):
    handle(evt.EVT_RELEASED, assoc=FakeAssociation())
    assert intake.finished == []


def test_an_association_that_died_without_a_word_is_swept_up(handle, intake):
    living, dead = FakeAssociation(), FakeAssociation(alive=False)
    for association in (living, dead):
        handle(evt.EVT_C_STORE, **store_event(association))
    handle.handlers.sweep()
    handle.handlers.sweep()
    assert [complete for _, complete in intake.finished] == [False]
    handle.handlers.end_all()
    assert len(intake.finished) == 2
