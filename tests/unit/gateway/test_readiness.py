from __future__ import annotations

import os

from dicom_gateway.readiness import Readiness


def make(tmp_path, *, is_listening=True, is_stow_listening=True, spool="spool"):
    (tmp_path / "spool").mkdir(exist_ok=True)
    return Readiness(
        doors={"AE_PORT": lambda: is_listening, "STOW_PORT": lambda: is_stow_listening},
        spool=tmp_path / spool,
        ledger=tmp_path / "ledger.sqlite",
    ).reasons_against()


def test_where_all_is_well_there_is_no_reason_and_no_trace(ledger, tmp_path):
    assert make(tmp_path) == ()
    assert list((tmp_path / "spool").iterdir()) == []


def test_every_reason_is_told(tmp_path):
    listening, spool, silent = make(tmp_path, is_listening=False, spool="gone")
    assert listening == "AE_PORT: nothing is received there at this moment"
    assert spool == "DATA_DIR: the spool cannot be written: No such file or directory"
    assert silent.startswith("DATA_DIR: the ledger does not answer")


def test_each_door_is_told_of_by_its_setting(ledger, tmp_path):
    assert make(tmp_path, is_stow_listening=False) == ("STOW_PORT: nothing is received there at this moment",)


def test_a_full_disk_is_a_reason(ledger, tmp_path, monkeypatch):
    monkeypatch.setattr(os, "write", lambda *_: 0)
    assert make(tmp_path) == ("DATA_DIR: the spool cannot be written: the disk is full",)
