from __future__ import annotations

import logging
import time

import pytest
from pydicom.uid import CTImageStorage

from dicom_gateway.commitment import NO_SUCH_INSTANCE, CommitmentRequest, Reference
from dicom_gateway.commitment_folder import CommitmentFolder
from dicom_gateway.commitment_reports import CommitmentReports
from dicom_gateway.committed_instances import Look
from flows_engine.handoff.run_request import Sender
from tests.fakes.commitment_scu import Reports, report_scp
from tests.services import wait_until

ONE = Reference(sop_class_uid=CTImageStorage, sop_instance_uid="1.2.3")


class Instances:
    """Finds nothing; ``looks`` tell one after the other whether that may change."""

    def __init__(self, *looks):
        self.looks = list(looks)

    def look(self, references):
        may_change = self.looks.pop(0) if len(self.looks) > 1 else self.looks[0]
        return Look(failures=dict.fromkeys(references, NO_SUCH_INSTANCE), may_change=may_change)


@pytest.fixture
def start(tmp_path, free_port):
    """Keep a request, and start what reports on it."""
    started = []

    def begin(*looks, asked_at=None, delays=(0.01, 0.01)):
        request = CommitmentRequest(
            transaction_uid="1.9",
            requester=Sender(ae_title="ASKER", host="10.0.0.1", port=104),
            asked_at=time.time() if asked_at is None else asked_at,
            references=(ONE,),
        )
        CommitmentFolder(tmp_path).keep(request).let_go()
        reports = CommitmentReports(
            CommitmentFolder(tmp_path),
            Instances(*looks),
            ae_title="STORESCP",
            peers={"ASKER": f"127.0.0.1:{free_port}"},
            retry_delays_seconds=delays,
        )
        started.append(reports)
        reports.start()

    yield begin
    for reports in started:
        reports.stop()


def is_empty(folder):
    return not list(folder.iterdir())


def test_a_peer_that_never_answers_is_given_up_after_its_chances(start, tmp_path, caplog):
    caplog.set_level(logging.WARNING)
    start(False)
    wait_until(lambda: is_empty(tmp_path), seconds=20, what="it is given up")
    told = [record.getMessage() for record in caplog.records if record.name == "dicom_gateway.commitment_reports"]
    assert [text.rpartition("; ")[2] for text in told] == ["again in 0.01 s", "again in 0.01 s", "given up"]


def test_a_peer_that_does_not_confirm_is_told_again(start, tmp_path, free_port):
    refusing = Reports(status=0x0110)
    with report_scp(free_port, refusing):
        start(False)
        assert len(refusing.wait(count=3)) == 3
        wait_until(lambda: is_empty(tmp_path), seconds=20, what="it is given up")


def test_what_may_change_is_not_reported_yet(start, tmp_path, free_port):
    reports = Reports()
    with report_scp(free_port, reports):
        start(True, False, delays=(5.0,))
        assert reports.wait()[0][0] == 2
        assert len(reports.events) == 1


def test_what_may_change_for_ever_is_reported_after_all(start, free_port):
    reports = Reports()
    with report_scp(free_port, reports):
        start(True, asked_at=time.time() - 3600)
        assert reports.wait()[0][0] == 2
