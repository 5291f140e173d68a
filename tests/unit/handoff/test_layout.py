from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flows_engine.handoff.header import read_header
from flows_engine.handoff.layout import LONGEST_LEVEL, Layout, safe_level
from tests.fakes.instances import ct, encoded


def header_of(**values):
    return read_header(encoded(ct(**values)), transfer_syntax_uid="1.2.840.10008.1.2.1")


def test_the_default_is_flat():
    assert str(Layout([]).place(header_of(), sop_instance_uid="1.2.3")) == "1.2.3.dcm"


def test_each_keyword_is_a_level():
    place = Layout(["Modality", "SeriesInstanceUID"]).place(
        header_of(SeriesInstanceUID="1.9"), sop_instance_uid="1.2.3"
    )
    assert str(place) == "CT/1.9/1.2.3.dcm"


def test_a_missing_or_empty_value_is_unknown():
    layout = Layout(["EchoTime", "StudyDescription"])
    assert str(layout.place(header_of(StudyDescription=""), sop_instance_uid="1.2")) == "unknown/unknown/1.2.dcm"


def test_what_shares_a_uid_gets_a_number():
    assert Layout([]).place(header_of(), sop_instance_uid="1.2.3", copy=2).name == "1.2.3_2.dcm"


def test_an_unknown_keyword_is_an_error_that_names_it():
    with pytest.raises(ValueError, match="'SeriesInstanceUUID' is not a DICOM keyword"):
        Layout(["SeriesInstanceUUID"])


@pytest.mark.parametrize(
    "value", ["..", ".", "../../etc", "/etc/passwd", ".hidden", "a b", "é", "unknown", "x\0y", "x" * 300]
)
def test_a_value_that_is_no_name_is_altered_and_marked(value):
    assert re.fullmatch(r"[A-Za-z0-9_-][A-Za-z0-9._-]*-[0-9a-f]{10}", safe_level(value))


@given(st.text(max_size=200))
def test_a_level_is_always_safe(value):
    level = safe_level(value)
    assert re.fullmatch(r"[A-Za-z0-9_-][A-Za-z0-9._-]*", level)
    assert len(level) <= LONGEST_LEVEL


@given(st.text(max_size=80), st.text(max_size=80))
def test_distinct_values_stay_distinct(one, other):
    assert (one == other) == (safe_level(one) == safe_level(other))


def test_a_value_made_to_look_altered_does_not_meet_the_altered_one():
    altered = safe_level("a b")
    assert safe_level(altered) != altered
