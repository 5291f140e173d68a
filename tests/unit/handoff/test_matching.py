from __future__ import annotations

import re
import time
from types import SimpleNamespace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flows_engine.definition.errors import PatternTimeoutError
from flows_engine.handoff.matching import match
from flows_engine.handoff.study_store import Fingerprint, TagColumn
from tests.factories import study_record
from tests.fakes.definitions import flow

KEYWORDS = {"Modality": "00080060", "SeriesDescription": "0008103E", "SOPClassUID": "00080016"}


def study_of(*rows, **record):
    """Make a study of instances written as ``{keyword: value or list of values}``."""
    columns = {}
    for keyword, tag in KEYWORDS.items():
        values, index = [], []
        for row in rows:
            if keyword not in row:
                index.append(-1)
                continue
            value = (row[keyword],) if isinstance(row[keyword], str) else tuple(row[keyword])
            if value not in values:
                values.append(value)
            index.append(values.index(value))
        if values:
            columns[tag] = TagColumn(values=tuple(values), index=tuple(index))
    return study_record(Fingerprint(instance_count=len(rows), columns=columns), **record)


def fires(rows, *triggers):
    report = match(study_of(*rows), [flow("f", *triggers)])
    return report.matched == ("f",)


def test_a_pattern_is_searched_anywhere_in_the_value():
    assert fires([{"SeriesDescription": "the Head, native"}], {"SeriesDescription": "Head|Neck"})
    assert not fires([{"SeriesDescription": "the Knee"}], {"SeriesDescription": "Head|Neck"})


def test_all_pairs_of_a_trigger_hold_in_one_instance():
    apart = [{"Modality": "CT", "SeriesDescription": "x"}, {"Modality": "MR", "SeriesDescription": "Head"}]
    together = [*apart, {"Modality": "CT", "SeriesDescription": "Head"}]
    trigger = {"Modality": "CT", "SeriesDescription": "Head"}
    assert not fires(apart, trigger)
    assert fires(together, trigger)


def test_all_triggers_are_found_perhaps_in_different_instances():
    assert fires([{"Modality": "CT"}, {"Modality": "MR"}], {"Modality": "CT"}, {"Modality": "MR"})
    assert not fires([{"Modality": "CT"}], {"Modality": "CT"}, {"Modality": "MR"})


def test_a_multi_valued_tag_matches_where_any_value_does():
    assert fires([{"SeriesDescription": ["a", "b"]}], {"SeriesDescription": "^b$"})


def test_a_tilde_pattern_may_match_no_value():
    assert not fires([{"SeriesDescription": ["a", "Phantom"]}], {"SeriesDescription": "~Phantom"})
    assert fires([{"SeriesDescription": ["a", "b"]}], {"SeriesDescription": "~Phantom"})


def test_a_lacking_tag_meets_tilde_patterns_only():
    assert not fires([{"Modality": "CT"}], {"SeriesDescription": ".*"})
    assert fires([{"Modality": "CT"}], {"SeriesDescription": "~Phantom"})
    assert fires(
        [{"Modality": "CT"}, {"Modality": "CT", "SeriesDescription": "Phantom"}], {"SeriesDescription": "~Phantom"}
    )


def test_an_empty_value_is_there_and_empty():
    assert fires([{"SeriesDescription": ""}], {"SeriesDescription": "^$"})


def test_a_list_of_patterns_holds_as_a_whole():
    trigger = {"SeriesDescription": ["Auto", "~Phantom"]}
    assert fires([{"SeriesDescription": "AutoSeg"}], trigger)
    assert not fires([{"SeriesDescription": "AutoSeg Phantom"}], trigger)


CT1 = {"sender": {"ae_title": "CT1", "host": "10.1.2.3", "port": 104}, "called_ae_title": "RESEARCH"}


@pytest.mark.parametrize(
    ("trigger", "found"),
    [
        ({"Sender.AETitle": "^CT1$"}, True),
        ({"Sender.AETitle": "^CT$"}, False),
        ({"Sender.AETitle": "~CT1"}, False),
        ({"Sender.Host": r"^10\.1\."}, True),
        ({"Called.AETitle": ["RESEARCH", "~CLINIC"]}, True),
        ({"Called.AETitle": "CLINIC"}, False),
        ({"Sender.AETitle": "CT1", "Modality": "MR"}, False),
    ],
)
def test_where_a_study_came_from_can_be_a_condition(trigger, found):
    (finding,) = match(study_of({"Modality": "CT"}, **CT1), [flow("f", trigger)]).flows
    assert (finding.verdict == "matched") is found


@pytest.mark.parametrize(("wanted", "found"), [(1, True), (2, True), (3, False), ("2", True)])
def test_a_trigger_may_ask_for_a_number_of_instances(wanted, found):
    rows = [
        {"Modality": "CT", "SeriesDescription": "thin"},
        {"Modality": "CT", "SeriesDescription": "thick"},
        {"Modality": "CT", "SeriesDescription": "thin"},
        {"Modality": "MR", "SeriesDescription": "thin"},
    ]
    assert fires(rows, {"Modality": "CT", "SeriesDescription": "thin", "min_instances": wanted}) is found


def test_the_report_says_how_many_of_how_many():
    report = match(study_of(*[{"Modality": "CT"}] * 12), [flow("f", {"Modality": "CT", "min_instances": 40})])
    (trigger,) = report.flows[0].triggers
    assert (trigger.holding, trigger.min_instances, trigger.found) == (12, 40, False)


def test_without_triggers_a_flow_runs_on_request_alone():
    report = match(study_of({"Modality": "CT"}), [flow("f")])
    assert report.matched == ()
    assert report.flows[0].verdict == "on-request"


def test_a_study_without_instances_matches_nothing():
    assert not fires([], {"SeriesDescription": "~Phantom"})


def test_each_flow_is_decided_for_itself():
    report = match(
        study_of({"Modality": "CT"}), [flow("a", {"Modality": "CT"}), flow("b", {"Modality": "MR"}), flow("c")]
    )
    assert [(finding.flow, finding.verdict) for finding in report.flows] == [
        ("a", "matched"), ("b", "not-matched"), ("c", "on-request"),
    ]  # fmt: skip


def test_the_report_counts_what_held():
    rows = [
        {"Modality": "CT", "SeriesDescription": "x"},
        {"Modality": "MR", "SeriesDescription": "Head"},
        {"Modality": "MR"},
    ]
    report = match(study_of(*rows), [flow("f", {"Modality": "CT", "SeriesDescription": "Head"})])
    (trigger,) = report.flows[0].triggers
    assert trigger.holding == 0
    assert [(one.tag, one.holding, one.having) for one in trigger.conditions] == [
        ("Modality", 1, 3), ("SeriesDescription", 1, 2),
    ]  # fmt: skip


def slow_flow(name):
    def search(_value):
        raise PatternTimeoutError("too slow")

    pattern = SimpleNamespace(text="(a+)+$", negated=False, written="(a+)+$", search=search)
    condition = SimpleNamespace(tag=KEYWORDS["Modality"], written="Modality", patterns=(pattern,))
    return SimpleNamespace(name=name, triggers=(SimpleNamespace(conditions=(condition,), min_instances=1),))


def test_a_pattern_that_never_ends_leaves_its_own_flow_undecided():
    report = match(study_of({"Modality": "CT"}), [slow_flow("slow"), flow("ok", {"Modality": "CT"})])
    assert report.matched == ("ok",)
    (undecided,) = report.undecided
    assert undecided.flow == "slow"
    assert "(a+)+$" in undecided.problem
    assert "Modality" in undecided.problem


values = st.sampled_from(["", "a", "b", "ab", "ba"])
rows = st.lists(
    st.fixed_dictionaries({}, optional={keyword: st.lists(values, min_size=1, max_size=3) for keyword in KEYWORDS}),
    max_size=6,
)
patterns = st.sampled_from(["a", "b", "^a$", "^$", "~a", "~b", "~^$", "~ab"])
triggers = st.lists(
    st.dictionaries(st.sampled_from(list(KEYWORDS)), st.lists(patterns, min_size=1, max_size=3), min_size=1), max_size=3
)


def naively_fires(study, definition):
    def holds(row, keyword, pattern):
        found = any(re.search(pattern.removeprefix("~"), value) for value in row.get(keyword, []))
        return not found if pattern.startswith("~") else found

    def meets(row, trigger):
        return all(holds(row, keyword, pattern) for keyword, written in trigger.items() for pattern in written)

    return bool(definition) and all(any(meets(row, trigger) for row in study) for trigger in definition)


@settings(max_examples=400, deadline=None)
@given(rows, triggers)
def test_columns_decide_as_rows_do(study, definition):
    assert fires(study, *definition) == naively_fires(study, definition)


def test_ten_thousand_instances_and_two_hundred_flows_are_quick():
    study = study_of(
        *({"Modality": "CT" if n % 2 else "MR", "SeriesDescription": f"series {n % 40}"} for n in range(10_000))
    )
    flows = [flow(f"f{n}", {"Modality": "CT", "SeriesDescription": f"series {n}$"}) for n in range(200)]
    began = time.process_time()
    report = match(study, flows)
    spent_seconds = time.process_time() - began
    assert len(report.matched) == 20
    assert spent_seconds < 3
