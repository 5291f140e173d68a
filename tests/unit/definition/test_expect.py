"""What may be expected of an output, and what is said where it is written wrongly."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from pydantic import ValidationError

from flows_engine.definition.errors import Problem
from flows_engine.definition.expect import Expect
from flows_engine.definition.loading import load_definition

WriteFlow = Callable[..., Path]
ProblemsOf = Callable[[str | bytes], tuple[Problem, ...]]

SMALLEST = "triggers: []\nmodels: [{docker_kwargs: {image: a}}]\n"


def test_values_are_read_as_their_author_meant_them(write_flow: WriteFlow) -> None:
    text = "expect: {min_files: '5', dicom_only: yes, same_patient: off, same_study: True, modality: rtstruct}\n"
    definition = load_definition(write_flow(SMALLEST + text)).definition

    assert definition.expect == Expect(
        min_files=5, dicom_only=True, same_patient=False, same_study=True, modality=("RTSTRUCT",)
    )


def test_only_the_patient_is_looked_at_where_nothing_is_written() -> None:
    assert [name for name, value in Expect() if value] == ["same_patient"]
    assert Expect().of_instances
    assert not Expect(same_patient=False, min_files=1, dicom_only=True).of_instances
    assert Expect.model_validate({"modality": [" ct ", "SEG"]}).modality == ("CT", "SEG")


@pytest.mark.parametrize(
    ("written", "field", "said"),
    [
        ("expect:", "expect", "has no value (write a mapping, like {min_files: 1, modality: RTSTRUCT}, or leave"),
        ("expect: yes", "expect", "is not a mapping of keys to values; it says 'yes' (write a mapping"),
        ("expect:\n  same_pateint: no", "expect.same_pateint", "is no known key (did you mean same_patient?)"),
        ("expect: {files: 1}", "expect.files", "is no known key (did you mean min_files?)"),
        ("expect: {same_patient: perhaps}", "expect.same_patient", "is neither true nor false; it says 'perhaps'"),
        ("expect: {min_files: some}", "expect.min_files", "is no whole number; it says 'some' (how many files"),
        ("expect: {modality: []}", "expect.modality", "is empty (name one, like RTSTRUCT, or a list of them)"),
        ("expect: {modality: [CT, RT-STRUCT]}", "expect.modality[1]", "is no modality like CT or RTSTRUCT"),
        ("expect: {modality: }", "expect.modality", "has no value"),
    ],
)
def test_what_is_wrong_is_told_with_its_line_and_a_way_out(
    problems_of: ProblemsOf, written: str, field: str, said: str
) -> None:
    (problem,) = problems_of(f"{SMALLEST}{written}\n")

    assert problem.field == field
    assert problem.line == SMALLEST.count("\n") + 1 + written.count("\n")
    assert said in str(problem)


@pytest.mark.parametrize("modality", ["", "  ", "A" * 17, "CT\nMR", "Doe^Jane", "ß" * 16])
def test_what_is_no_code_string_is_no_modality(modality: str) -> None:
    with pytest.raises(ValidationError):
        Expect(modality=(modality,))
