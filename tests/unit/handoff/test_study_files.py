from __future__ import annotations

import pytest
from pydicom.dataset import Dataset
from pydicom.sequence import Sequence

from flows_engine.handoff.deep_values import TooManyValuesError
from flows_engine.handoff.study_files import read_study
from tests.fakes.instances import as_file, ct, received

STEP = "00400275.00400007"


def write(path, description, **values):
    step = Dataset()
    step.ScheduledProcedureStepDescription = description
    instance = received(ct(RequestAttributesSequence=Sequence([step]), **values))
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(as_file(instance))


def test_an_instance_of_the_fingerprint_is_the_file_of_its_number(tmp_path):
    write(tmp_path / "b.dcm", "Neck", SeriesDescription="n")
    write(tmp_path / "a" / "c.dcm", "Head", SeriesDescription="h")
    write(tmp_path / "d.dcm", "Head", SeriesDescription=None)

    study = read_study(tmp_path, keys=[STEP, "00400275.00080060"])

    assert [path.name for path in study.files] == ["c.dcm", "b.dcm", "d.dcm"]
    assert study.fingerprint.instance_count == 3
    column = study.fingerprint.columns[STEP]
    assert [column.values[place] for place in column.index] == [("Head",), ("Neck",), ("Head",)]
    assert study.fingerprint.columns["0008103E"].index == (0, 1, -1)
    assert study.fingerprint.columns["00400275.00080060"].index == (-1, -1, -1)


def test_a_damaged_file_has_no_values_and_keeps_its_place(tmp_path):
    write(tmp_path / "a.dcm", "Head")
    write(tmp_path / "b.dcm", "Head")
    (tmp_path / "a.dcm").write_bytes((tmp_path / "a.dcm").read_bytes()[:-3])
    study = read_study(tmp_path, keys=[STEP])
    assert study.fingerprint.columns[STEP].index == (-1, 0)
    assert study.fingerprint.columns["00080060"].index == (-1, 0)


def test_more_values_than_are_searched_are_told(tmp_path, monkeypatch):
    monkeypatch.setattr("flows_engine.handoff.deep_values.MOST_VALUES", 0)
    write(tmp_path / "a.dcm", "Head")
    with pytest.raises(TooManyValuesError):
        read_study(tmp_path, keys=[STEP])
