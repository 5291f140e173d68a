from __future__ import annotations

import time

import pytest

from flows_engine.handoff.study_store import Fingerprint, TagColumn
from flows_engine.redaction import REPLACEMENT, Redactor, redactor_for


def _fingerprint(**values: str) -> Fingerprint:
    return Fingerprint(
        instance_count=1,
        columns={tag.lstrip("t"): TagColumn(values=((value,),), index=(0,)) for tag, value in values.items()},
    )


PATIENT = _fingerprint(
    t00100010="Doe^Johanna^Maria",
    t00100020="PAT-4711",
    t00100030="19700131",
    t00080050="ACC99",
    t0008103E="Head routine",
)


@pytest.mark.parametrize(
    "line",
    [
        "reading Doe^Johanna^Maria",
        "reading doe johanna",
        "reading Johanna Doe",
        "reading DOE, JOHANNA",
        "/data/Doe_Johanna/x.nii",
        "/data/doejohanna.nii",
        "patient Doe.",
        "id=PAT-4711",
        "born 19700131",
        "born 1970-01-31",
        "born 31.01.1970",
        "acc ACC99",
        "series: HEAD ROUTINE",
    ],
)
def test_what_names_the_patient_is_replaced(line: str) -> None:
    redacted = redactor_for(PATIENT)(line)
    assert REPLACEMENT in redacted
    for word in ("doe", "johanna", "4711", "1970", "acc99", "routine"):
        assert word not in redacted.casefold()


@pytest.mark.parametrize("line", ["epoch 12 of 99: loss 0.1", "a does b", "1.2.840.10008.1.2", ""])
def test_what_does_not_is_left(line: str) -> None:
    assert redactor_for(PATIENT)(line) == line


def test_a_short_name_does_not_cut_words() -> None:
    redact = redactor_for(_fingerprint(t00100010="Lee^Al"))
    assert redact("sleep, Lee, fleeting") == f"sleep, {REPLACEMENT}, fleeting"


def test_a_short_id_is_not_looked_for() -> None:
    assert redactor_for(_fingerprint(t00100020="12"))("12 slices") == "12 slices"


def test_values_are_text_and_not_patterns() -> None:
    assert redactor_for(_fingerprint(t00100020=".*(a+)+$"))("anything") == "anything"


def test_no_values_leave_every_line_as_it_is() -> None:
    assert Redactor([])("a line") == "a line"


def test_many_values_and_a_long_line_are_quick() -> None:
    redact = Redactor(f"description number {number}" for number in range(2000))
    start = time.perf_counter()
    for _ in range(20):
        assert REPLACEMENT in redact("x" * 8000 + " description number 1999")
    assert time.perf_counter() - start < 2


@pytest.mark.parametrize("value", ["Quillon", "Doe"])
def test_a_single_value_is_replaced_and_nothing_is_put_between_other_characters(value: str) -> None:
    assert Redactor([value])(f"touch: /input/x: {value}") == f"touch: /input/x: {REPLACEMENT}"
