from __future__ import annotations

import struct
from contextlib import suppress

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydicom.dataset import Dataset
from pydicom.sequence import Sequence
from pydicom.uid import ExplicitVRBigEndian, ExplicitVRLittleEndian, ImplicitVRLittleEndian

from flows_engine.definition.trigger_key import parse_key
from flows_engine.handoff import deep_values as module
from flows_engine.handoff.deep_values import TooManyValuesError, deep_values
from flows_engine.handoff.header import UnreadableError, read_header
from tests.fakes.instances import ct, encoded

SYNTAXES = [ExplicitVRLittleEndian, ImplicitVRLittleEndian, ExplicitVRBigEndian]
STEP = "RequestAttributesSequence.ScheduledProcedureStepDescription"
CODE = "RequestAttributesSequence.ScheduledProtocolCodeSequence.CodeValue"


def values(content, written, syntax=ExplicitVRLittleEndian):
    key = parse_key(written)
    return deep_values(content, transfer_syntax_uid=syntax, keys=[key]).get(key)


def item(**elements):
    dataset = Dataset()
    for keyword, value in elements.items():
        setattr(dataset, keyword, value)
    return dataset


def requested(*descriptions, undefined=False):
    items = []
    for description in descriptions:
        code = item(CodeValue=f"C-{description}", CodeMeaning="x")
        one = item(ScheduledProcedureStepDescription=description, ScheduledProtocolCodeSequence=Sequence([code]))
        one.is_undefined_length_sequence_item = undefined
        items.append(one)
    dataset = ct(RequestAttributesSequence=Sequence(items))
    dataset["RequestAttributesSequence"].is_undefined_length = undefined
    return dataset


@pytest.mark.parametrize("undefined", [False, True])
@pytest.mark.parametrize("syntax", SYNTAXES)
def test_the_values_of_all_items_are_found(syntax, undefined):
    content = encoded(requested("Head", "Neck", "Head", undefined=undefined), transfer_syntax_uid=syntax)
    assert values(content, STEP, syntax) == ("Head", "Neck")
    assert values(content, CODE, syntax) == ("C-Head", "C-Neck")
    assert values(content, "RequestAttributesSequence.RequestedProcedureID", syntax) is None
    assert values(content, "ReferencedStudySequence.ReferencedSOPInstanceUID", syntax) is None


def test_several_keys_are_found_at_once_and_nothing_else():
    keys = [parse_key(STEP), parse_key(CODE), "00080060"]
    found = deep_values(encoded(requested("Head")), transfer_syntax_uid=ExplicitVRLittleEndian, keys=keys)
    assert found == {keys[0]: ("Head",), keys[1]: ("C-Head",), "00080060": ("CT",)}


def with_private(creator="ACME 1.0", *, block=0x10, text="special"):
    dataset = ct()
    dataset.add_new(0x00290000 | block, "LO", creator)
    dataset.add_new(0x00290010 | block << 8, "LO", text)
    return dataset


@pytest.mark.parametrize("syntax", SYNTAXES)
@pytest.mark.parametrize("block", [0x10, 0x42, 0xFF])
def test_a_private_element_is_found_wherever_its_block_lies(syntax, block):
    content = encoded(with_private(block=block), transfer_syntax_uid=syntax)
    assert values(content, '(0029,"ACME 1.0",10)', syntax) == ("special",)
    assert values(content, '(0029,"ACME 2.0",10)', syntax) is None
    assert values(content, '(0029,"ACME 1.0",11)', syntax) is None


def test_each_block_of_one_creator_counts():
    dataset = with_private(text="one")
    dataset.add_new(0x00290011, "LO", "ACME 1.0")
    dataset.add_new(0x00291110, "LO", "two")
    assert values(encoded(dataset), '(0029,"ACME 1.0",10)') == ("one", "two")


@pytest.mark.parametrize("syntax", SYNTAXES)
def test_a_private_sequence_is_gone_through(syntax):
    dataset = with_private()
    dataset.add_new(0x00291020, "SQ", Sequence([item(CodeValue="A"), with_private("B", text="deep")]))
    content = encoded(dataset, transfer_syntax_uid=syntax)
    assert values(content, '(0029,"ACME 1.0",20).CodeValue', syntax) == ("A",)
    assert values(content, '(0029,"ACME 1.0",20).(0029,"B",10)', syntax) == ("deep",)
    assert values(content, "00291020.CodeValue", syntax) == ("A",)


def test_a_creator_of_another_item_reserves_nothing():
    dataset = ct(ReferencedStudySequence=Sequence([item(), with_private("B")]))
    dataset.ReferencedStudySequence[0].add_new(0x00291010, "LO", "nobody's")
    assert values(encoded(dataset), 'ReferencedStudySequence.(0029,"B",10)') == ("special",)


def test_an_item_may_have_a_character_set_of_its_own():
    dataset = ct(SpecificCharacterSet="ISO_IR 192", RequestAttributesSequence=Sequence([
        item(ScheduledProcedureStepDescription="Müller"),
        item(SpecificCharacterSet="ISO_IR 100", ScheduledProcedureStepDescription="Jörg"),
        item(ScheduledProcedureStepDescription="Zoë"),
    ]))  # fmt: skip
    assert values(encoded(dataset), STEP) == ("Müller", "Jörg", "Zoë")


def test_an_empty_value_is_there_and_empty():
    assert values(encoded(requested("")), STEP) == ("",)


def explicit(group, number, vr, value):
    if vr in (b"SQ", b"UN", b"OB"):
        return struct.pack("<HH2sHL", group, number, vr, 0, len(value)) + value
    return struct.pack("<HH2sH", group, number, vr, len(value)) + value


def raw_item(content):
    return struct.pack("<HHL", 0xFFFE, 0xE000, len(content)) + content


def test_a_sequence_of_unknown_vr_is_read_as_implicit():
    inner = struct.pack("<HHL", 0x0040, 0x0007, 4) + b"Head"
    content = explicit(0x0040, 0x0275, b"UN", raw_item(inner))
    assert values(content, STEP) == ("Head",)


def test_what_cannot_be_read_of_a_sequence_costs_that_item_only():
    good, broken = explicit(0x0040, 0x0007, b"LO", b"Head"), explicit(0x0040, 0x0007, b"LO", b"Neck")[:-2]
    content = explicit(0x0040, 0x0275, b"SQ", raw_item(broken) + raw_item(good) + b"rubbish!")
    content += explicit(0x0040, 0x1001, b"SH", b"ID")
    assert values(content, STEP) == ("Head",)
    assert values(content, "RequestedProcedureID") == ("ID",)


def test_countless_items_of_one_value_are_one_value():
    items = raw_item(explicit(0x3006, 0x0042, b"CS", b"CLOSED_PLANAR ")) * 30_000
    content = explicit(0x3006, 0x0039, b"SQ", raw_item(explicit(0x3006, 0x0040, b"SQ", items)))
    assert values(content, "ROIContourSequence.ContourSequence.ContourGeometricType") == ("CLOSED_PLANAR",)


def test_more_values_than_anybody_searches_are_told(monkeypatch):
    monkeypatch.setattr(module, "MOST_VALUES", 2)
    content = encoded(requested("a", "b"))
    assert values(content, STEP) == ("a", "b")
    with pytest.raises(TooManyValuesError):
        values(encoded(requested("a", "b", "c")), STEP)
    monkeypatch.setattr(module, "MOST_BYTES", 3)
    with pytest.raises(TooManyValuesError):
        values(encoded(requested("aa", "bb")), STEP)


WHOLE = {
    (syntax, undefined): encoded(requested("Head", "Neck", undefined=undefined), transfer_syntax_uid=syntax)
    for syntax in SYNTAXES
    for undefined in (False, True)
}


@st.composite
def mutated(draw):
    syntax, undefined = draw(st.sampled_from(list(WHOLE)))
    content = bytearray(WHOLE[syntax, undefined])
    for _ in range(draw(st.integers(1, 5))):
        at = draw(st.integers(0, 10_000)) % len(content)
        content[at : at + draw(st.integers(0, 2))] = draw(st.binary(max_size=3))
    return bytes(content), syntax


def walked_with_care(content, syntax):
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(module, "skip_plain", lambda _data, at, *, end, stop_at: at)
        return outcome(content, syntax)


def outcome(content, syntax):
    try:
        return values(memoryview(content), CODE, syntax)
    except UnreadableError as error:
        return str(error)


@settings(max_examples=400, deadline=None)
@given(mutated())
def test_what_was_taken_in_can_be_gone_through(given_content):
    content, syntax = given_content
    assert outcome(content, syntax) == walked_with_care(content, syntax)
    try:
        read_header(content, transfer_syntax_uid=syntax)
    except UnreadableError:
        return
    assert isinstance(values(content, CODE, syntax), tuple | None)


@settings(max_examples=300, deadline=None)
@given(mutated())
def test_whatever_is_there_is_read_or_refused_and_nothing_else(given_content):
    content, syntax = given_content
    with suppress(UnreadableError):
        values(content, CODE, syntax)
