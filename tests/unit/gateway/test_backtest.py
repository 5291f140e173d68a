from __future__ import annotations

import pytest

from dicom_gateway.backtest import Backtest
from flows_engine.handoff.matching import match
from flows_engine.handoff.study_store import Fingerprint, TagColumn
from tests.factories import study_record
from tests.fakes.definitions import flow


def fingerprint(instance_count: int = 2, **values: str) -> Fingerprint:
    tags = {"modality": "00080060", "description": "00081030"}
    columns = {tags[name]: TagColumn(values=((value,),), index=(0,) * instance_count) for name, value in values.items()}
    return Fingerprint(instance_count=instance_count, columns=columns)


def backtest_of(definition, *studies: Fingerprint, most_named: int = 9, **known: bool) -> Backtest:
    result = Backtest(most_named=most_named)
    for number, study in enumerate(studies):
        (finding,) = match(study_record(study), [definition]).flows
        facts = {"is_held": False, "ran_before": False, **known}
        result.add(f"s{number}", finding, **facts)
    return result


CT = flow("A", {"Modality": "CT", "StudyDescription": ["AutoSeg", "~Phantom"]})


def test_what_matches_is_counted_and_named_up_to_a_bound():
    study = fingerprint(modality="CT", description="AutoSeg")
    result = backtest_of(CT, *[study] * 5, most_named=2, is_held=True, ran_before=True)
    assert (result.studies, result.matched, result.not_matched) == (5, 5, 0)
    assert result.matched_ids == ["s0", "s1"]
    assert (result.held, result.ran_before) == (5, 5)


def test_reasons_are_the_same_however_many_instances_a_study_has():
    result = backtest_of(CT, *(fingerprint(count, modality="MR", description="AutoSeg") for count in (1, 2, 3)))
    assert result.reasons() == [("Modality: no instance matches 'CT'", 3)]
    assert result.not_matched == 3


def test_a_study_may_have_several_reasons_and_the_most_frequent_come_first():
    result = backtest_of(
        CT,
        fingerprint(modality="MR"),
        fingerprint(modality="CT"),
        fingerprint(modality="CT", description="AutoSeg Phantom"),
    )
    assert result.reasons() == [
        ("StudyDescription: no instance has this tag", 2),
        ("Modality: no instance matches 'CT'", 1),
        ("StudyDescription: no instance matches 'AutoSeg' and '~Phantom'", 1),
    ]


def test_conditions_that_hold_apart_are_a_reason_of_their_own():
    apart = Fingerprint(
        instance_count=2,
        columns={
            "00080060": TagColumn(values=(("CT",), ("MR",)), index=(0, 1)),
            "00081030": TagColumn(values=(("other",), ("AutoSeg",)), index=(0, 1)),
        },
    )
    result = backtest_of(CT, apart)
    ((reason, count),) = result.reasons()
    assert (reason, count) == ("each condition holds somewhere, but never all of them in the same instance", 1)


def test_of_several_triggers_the_one_that_is_not_found_is_named():
    both = flow("A", {"Modality": "CT"}, {"Modality": "RTSTRUCT"})
    assert backtest_of(both, fingerprint(modality="CT")).reasons() == [
        ("trigger 2: Modality: no instance matches 'RTSTRUCT'", 1)
    ]


def test_a_flow_without_triggers_matches_nothing_by_itself():
    result = backtest_of(flow("A"), fingerprint(modality="CT"))
    assert result.matched == 0
    assert result.reasons() == [("has no triggers, so it runs on request alone", 1)]


def test_a_pattern_that_takes_too_long_decides_nothing(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("flows_engine.definition.trigger._SECONDS_PER_VALUE", 0.01)
    hard = flow("A", {"StudyDescription": "(a|aa)+$"})
    result = backtest_of(hard, fingerprint(description="a" * 60 + "b"))
    assert (result.undecided, result.not_matched) == (1, 0)
    ((problem, count),) = result.problems()
    assert problem.startswith("StudyDescription: the pattern")
    assert count == 1


def test_what_cannot_be_read_is_counted():
    result = Backtest(most_named=1)
    result.add_unreadable()
    assert (result.unreadable, result.studies) == (1, 1)


def test_a_sender_that_is_not_meant_is_a_reason():
    result = backtest_of(flow("A", {"Sender.AETitle": "CT1"}), fingerprint(modality="CT"))
    assert result.reasons() == [("Sender.AETitle: that of the study does not match 'CT1'", 1)]


def test_too_few_instances_are_the_same_reason_whatever_their_number():
    many = flow("A", {"Modality": "CT", "min_instances": 40})
    result = backtest_of(many, *(fingerprint(count, modality="CT") for count in (1, 39, 40)))
    assert result.reasons() == [("fewer than 40 instances meet all conditions", 2)]
    assert result.matched == 1
