from __future__ import annotations

import logging
import stat

import pytest
from pydicom.uid import CTImageStorage

from dicom_gateway import commitment_folder
from dicom_gateway.commitment import CommitmentRequest, Reference
from dicom_gateway.commitment_folder import CommitmentFolder, TooManyError
from flows_engine.handoff.run_request import Sender

REQUEST = CommitmentRequest(
    transaction_uid="1.9",
    requester=Sender(ae_title="ASKER", host="10.0.0.1", port=104),
    asked_at=1.0,
    references=(Reference(sop_class_uid=CTImageStorage, sop_instance_uid="1.2.3"),),
)


def test_a_request_is_nobody_elses_until_it_is_let_go(tmp_path):
    folder = CommitmentFolder(tmp_path)
    kept = folder.keep(REQUEST)
    assert list(folder.abandoned()) == []
    kept.let_go()
    (found,) = folder.abandoned()
    assert found.request == REQUEST
    assert list(folder.abandoned()) == []


def test_what_is_done_is_gone_and_what_is_postponed_stays(tmp_path):
    folder = CommitmentFolder(tmp_path)
    folder.keep(REQUEST).done()
    assert list(tmp_path.iterdir()) == []
    folder.keep(REQUEST).postpone(REQUEST.model_copy(update={"attempts": 2}))
    (found,) = folder.abandoned()
    assert found.request.attempts == 2


def test_no_other_user_may_read_it(tmp_path):
    CommitmentFolder(tmp_path).keep(REQUEST)
    (path,) = tmp_path.iterdir()
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_one_that_is_damaged_is_dropped_without_a_quote(tmp_path, caplog):
    (tmp_path / "x.json").write_text('{"transaction_uid": "CANARY"')
    with caplog.at_level(logging.ERROR):
        assert list(CommitmentFolder(tmp_path).abandoned()) == []
    assert list(tmp_path.iterdir()) == []
    assert "damaged" in caplog.text
    assert "CANARY" not in caplog.text


def test_no_more_are_taken_than_can_be_worked_off(tmp_path, monkeypatch):
    monkeypatch.setattr(commitment_folder, "_MOST_KEPT", 2)
    folder = CommitmentFolder(tmp_path)
    for _ in range(2):
        folder.keep(REQUEST)
    with pytest.raises(TooManyError):
        folder.keep(REQUEST)


def test_a_folder_that_cannot_be_written_leaves_nothing(tmp_path, monkeypatch):
    def fail(_):
        raise OSError("no")

    monkeypatch.setattr(commitment_folder.durable_files, "sync_folder", fail)
    with pytest.raises(OSError, match="no"):
        CommitmentFolder(tmp_path).keep(REQUEST)
    assert list(tmp_path.iterdir()) == []
