from __future__ import annotations

import sqlite3
import time
from datetime import UTC, datetime, timedelta

import pytest

from dicom_gateway import ledger_figures
from dicom_gateway.errors import LedgerSilentError
from dicom_gateway.ledger import Decision
from dicom_gateway.ledger_figures import read_ledger_figures


def test_studies_are_counted_by_outcome_and_what_waits_has_an_age(ledger, make_record, make_request, tmp_path):
    for number in ("0001", "0002", "0003"):
        ledger.add(make_record(number))
    first, second = make_record("0001").study_id, make_record("0002").study_id
    ledger.decide(first, Decision(outcome="triggered", reason="", requests=(make_request(first),)))
    ledger.decide(second, Decision(outcome="held", reason="why"))
    figures = read_ledger_figures(tmp_path / "ledger.sqlite")
    assert figures.studies == {"received": 1, "triggered": 1, "held": 1}
    assert figures.pending_count == 1
    assert timedelta(0) <= datetime.now(UTC) - figures.oldest_pending_at < timedelta(minutes=1)


def test_nothing_that_waits_has_no_age(ledger, tmp_path):
    figures = read_ledger_figures(tmp_path / "ledger.sqlite")
    assert (figures.studies, figures.pending_count, figures.oldest_pending_at) == ({}, 0, None)


def test_a_look_does_not_wait_for_a_write(ledger, tmp_path):
    with ledger._transaction():
        began = time.monotonic()
        read_ledger_figures(tmp_path / "ledger.sqlite")
        assert time.monotonic() - began < 1


def test_a_ledger_that_is_not_there_is_silent(tmp_path):
    with pytest.raises(LedgerSilentError, match="the ledger does not answer"):
        read_ledger_figures(tmp_path / "ledger.sqlite")
    assert list(tmp_path.iterdir()) == []


def test_a_look_that_takes_too_long_is_given_up(ledger, tmp_path, monkeypatch):
    monkeypatch.setattr(ledger_figures, "_LONGEST_LOOK_SECONDS", -1.0)
    monkeypatch.setattr(ledger_figures, "_STEPS_BETWEEN_LOOKS_AT_THE_CLOCK", 1)
    with pytest.raises(LedgerSilentError, match="interrupted"):
        read_ledger_figures(tmp_path / "ledger.sqlite")


def test_a_locked_ledger_does_not_hold_the_look_up_for_long(tmp_path):
    path = tmp_path / "ledger.sqlite"
    with sqlite3.connect(path, isolation_level=None) as other:
        other.execute("CREATE TABLE studies (outcome TEXT)")
        other.execute("BEGIN EXCLUSIVE")
        began = time.monotonic()
        with pytest.raises(LedgerSilentError, match="locked"):
            read_ledger_figures(path)
        assert time.monotonic() - began < 5
