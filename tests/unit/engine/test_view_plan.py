from __future__ import annotations

from pathlib import Path

import pytest

from flows_engine.definition.errors import PatternTimeoutError
from flows_engine.definition.schema import FlowDefinition
from flows_engine.definition.trigger import Pattern
from flows_engine.errors import NoInputError
from flows_engine.handoff.study_files import StudyFiles
from flows_engine.handoff.study_store import Fingerprint, TagColumn
from flows_engine.view_plan import view_plan
from tests.factories import flow_keys, study_record

SOURCE = Path("/studies/x/input")
MODALITY, SERIES, DESCRIPTION, STEP = "00080060", "0020000E", "0008103E", "00400275.00400007"
INSTANCES = {
    "a.dcm": {MODALITY: "CT", SERIES: "1.1", DESCRIPTION: "thin", STEP: "Head"},
    "b.dcm": {MODALITY: "CT", SERIES: "1.2", DESCRIPTION: "scout"},
    "deep/c.dcm": {MODALITY: "MR", SERIES: "1.3", DESCRIPTION: "thin"},
    "deep/a.dcm": {MODALITY: "SR", STEP: "Head"},
}


def plan(**keys: object) -> dict[str, str]:
    definition = FlowDefinition.model_validate(flow_keys(name="A", **keys))
    columns = {}
    for key in (MODALITY, SERIES, DESCRIPTION, STEP):
        values = [instance.get(key) for instance in INSTANCES.values()]
        distinct = list(dict.fromkeys(value for value in values if value))
        index = tuple(-1 if value is None else distinct.index(value) for value in values)
        columns[key] = TagColumn(values=tuple((value,) for value in distinct), index=index)
    fingerprint = Fingerprint(instance_count=len(INSTANCES), columns=columns)
    files = StudyFiles(files=tuple(SOURCE / name for name in INSTANCES), fingerprint=fingerprint)
    # The record knows nothing: what is in the files counts.
    study = study_record(Fingerprint(instance_count=len(INSTANCES), columns={}))
    made = view_plan(definition, study=study, files=files, source=SOURCE)
    return {str(place): str(file.relative_to(SOURCE)) for place, file in made.items()}


def test_what_meets_all_conditions_of_some_trigger_is_chosen() -> None:
    triggers = [{"Modality": "CT", "SeriesDescription": "thin"}, {"Modality": "MR"}]
    assert list(plan(triggers=triggers, input="matched")) == ["a.dcm", "deep/c.dcm"]


def test_where_it_came_from_and_what_lies_deep_choose_as_well() -> None:
    step = "RequestAttributesSequence.ScheduledProcedureStepDescription"
    assert list(plan(triggers=[{step: "Head", "Sender.AETitle": "PACS"}], input="matched")) == ["a.dcm", "deep/a.dcm"]


def test_a_trigger_that_is_not_found_chooses_all_the_same() -> None:
    triggers = [{"Modality": "CT", "min_instances": 40}, {"Modality": "PT"}]
    assert list(plan(triggers=triggers, input="matched")) == ["a.dcm", "b.dcm"]


def test_each_level_is_a_folder_and_nothing_is_overwritten() -> None:
    assert plan(tar_subdir=["Modality", "SeriesInstanceUID"]) == {
        "CT/1.1/a.dcm": "a.dcm",
        "CT/1.2/b.dcm": "b.dcm",
        "MR/1.3/c.dcm": "deep/c.dcm",
        "SR/unknown/a.dcm": "deep/a.dcm",
    }
    assert plan(tar_subdir=[]) == {
        "a.dcm": "a.dcm", "b.dcm": "b.dcm", "c.dcm": "deep/c.dcm", "a_2.dcm": "deep/a.dcm",
    }  # fmt: skip


def test_nothing_to_run_on_is_told() -> None:
    with pytest.raises(NoInputError, match="none of 4 instances meets a trigger of A"):
        plan(triggers=[{"Modality": "PT"}], input="matched")


def test_a_pattern_that_never_ends_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    def search(_self: Pattern, _value: str) -> bool:
        raise PatternTimeoutError("slow")

    monkeypatch.setattr(Pattern, "search", search)
    with pytest.raises(NoInputError, match="Modality: the pattern 'CT' did not come to an end"):
        plan(triggers=[{"Modality": "CT"}], input="matched")
