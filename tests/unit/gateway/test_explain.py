from __future__ import annotations

from dicom_gateway.explain import explain, summary
from flows_engine.handoff.matching import ConditionFinding, FlowFinding, MatchReport, TriggerFinding


def condition(*, holding, having=100, tag="Modality", patterns=("CT",)):
    return ConditionFinding(tag=tag, patterns=patterns, holding=holding, having=having)


def report(*flows):
    return MatchReport(instance_count=100, flows=flows)


def missed(name="A", *conditions):
    trigger = TriggerFinding(conditions=conditions or (condition(holding=0),), holding=0)
    return FlowFinding(flow=name, verdict="not-matched", triggers=(trigger,))


MATCHED = FlowFinding(flow="M", verdict="matched", triggers=(TriggerFinding(conditions=(), holding=1),))


def test_a_condition_that_never_holds_is_the_reason():
    assert explain(report(missed())) == "A: does not match\n  Modality: none of 100 instances matches 'CT'"


def test_a_tag_that_no_instance_has_is_the_reason():
    text = explain(report(missed("A", condition(holding=0, having=0, patterns=("a", "~b")))))
    assert "none of 100 instances has this tag, so none matches 'a' and '~b'" in text


def test_conditions_that_hold_apart_are_the_reason():
    text = explain(report(missed("A", condition(holding=3), condition(holding=9, tag="SeriesDescription"))))
    assert "each condition holds somewhere, but never all of them in the same one of 100 instances" in text


def test_only_the_trigger_that_failed_is_named():
    found = TriggerFinding(conditions=(condition(holding=100),), holding=100)
    failed = TriggerFinding(conditions=(condition(holding=0, tag="SOPClassUID"),), holding=0)
    text = explain(report(FlowFinding(flow="A", verdict="not-matched", triggers=(found, failed))))
    assert "trigger 2: SOPClassUID" in text
    assert "trigger 1" not in text


def test_a_sender_that_is_not_meant_is_the_reason():
    text = explain(report(missed("A", condition(holding=0, tag="Sender.Host", patterns=("^10",)))))
    assert "Sender.Host: that of the study does not match '^10'" in text


def test_too_few_instances_are_the_reason():
    trigger = TriggerFinding(conditions=(condition(holding=12),), holding=12, min_instances=40)
    text = explain(report(FlowFinding(flow="A", verdict="not-matched", triggers=(trigger,))))
    assert text.splitlines()[1:] == ["  12 of 40 instances that it needs meet all of its conditions"]


def test_the_other_verdicts_have_a_line_each():
    request = FlowFinding(flow="R", verdict="on-request")
    slow = FlowFinding(flow="S", verdict="undecided", problem="Modality: the pattern 'x' is slow")
    lines = explain(report(MATCHED, request, slow)).splitlines()
    assert lines == [
        "M: matches",
        "R: has no triggers, so it runs on request alone",
        "S: undecided",
        "  Modality: the pattern 'x' is slow",
    ]


def test_the_summary_is_one_line():
    assert summary(report(MATCHED, missed())) == "matched M"
    assert summary(report()) == "no flow is defined"
    assert summary(report(missed())) == "none of 1 flows matches: A: Modality: none of 100 instances matches 'CT'"
    slow = FlowFinding(flow="S", verdict="undecided", problem="it is slow")
    assert summary(report(MATCHED, slow)) == "S: it is slow"


def test_the_summary_of_many_flows_is_short():
    text = summary(report(*(missed(f"F{n}") for n in range(50))))
    assert text.startswith("none of 50 flows matches: F0: ")
    assert text.endswith("; and 47 more")
    assert "F3" not in text
