from __future__ import annotations

import struct
import zlib
from pathlib import Path

import pydicom
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydicom.data import get_testdata_file
from pydicom.dataset import Dataset
from pydicom.sequence import Sequence
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
)

from flows_engine.handoff import header as header_module
from flows_engine.handoff.decoding import LONGEST_VALUE_BYTES
from flows_engine.handoff.header import (
    DEEPEST_SEQUENCE,
    MOST_ELEMENTS,
    UnreadableError,
    read_file_header,
    read_header,
)
from tests.fakes.instances import as_file, ct, encoded, received

MODALITY, PATIENT_NAME, IMAGE_TYPE, ROWS = 0x00080060, 0x00100010, 0x00080008, 0x00280010
SYNTAXES = [ExplicitVRLittleEndian, ImplicitVRLittleEndian, ExplicitVRBigEndian]


def header_of(dataset: Dataset, transfer_syntax_uid: str = ExplicitVRLittleEndian):
    content = encoded(dataset, transfer_syntax_uid=transfer_syntax_uid)
    return read_header(content, transfer_syntax_uid=transfer_syntax_uid)


@pytest.mark.parametrize("syntax", SYNTAXES)
def test_values_are_the_same_in_every_encoding(syntax):
    header = header_of(ct(ImageType=["ORIGINAL", "PRIMARY"], SmallestImagePixelValue=7), syntax)
    assert header.values(MODALITY) == ("CT",)
    assert header.values(IMAGE_TYPE) == ("ORIGINAL", "PRIMARY")
    assert header.values(ROWS) == ("4",)
    assert header.values(0x00280106) == ("7",)
    assert header.values(0x00020010) == (str(syntax),)


def test_a_number_whose_sign_depends_on_the_pixels_is_read_with_it():
    dataset = ct(PixelRepresentation=1)
    dataset.add_new("SmallestImagePixelValue", "SS", -7)
    for syntax in (ExplicitVRLittleEndian, ImplicitVRLittleEndian):
        assert header_of(dataset, syntax).values(0x00280106) == ("-7",)


def test_a_lacking_element_is_none_and_an_empty_one_is_one_empty_value():
    header = header_of(ct(PatientID=None, SeriesDescription=""))
    assert header.values(0x00100020) is None
    assert header.text(0x00100020) == ""
    assert header.values(0x0008103E) == ("",)


def test_text_is_decoded_with_the_data_sets_character_set():
    dataset = ct(SpecificCharacterSet="ISO_IR 192", PatientName="Müller^Jörg")
    assert header_of(dataset).values(PATIENT_NAME) == ("Müller^Jörg",)
    assert header_of(ct(SpecificCharacterSet="ISO_IR 100", PatientName="Müller")).values(PATIENT_NAME) == ("Müller",)


def test_a_japanese_name_with_code_extensions_is_decoded():
    dataset = ct(SpecificCharacterSet=["", "ISO 2022 IR 87"], PatientName="Yamada^Tarou=山田^太郎")
    assert header_of(dataset).values(PATIENT_NAME) == ("Yamada^Tarou=山田^太郎",)


def test_a_text_of_one_value_keeps_its_backslashes():
    assert header_of(ct(PatientComments=r"a\b")).values(0x00104000) == (r"a\b",)


def test_private_text_with_an_explicit_vr_is_searchable():
    dataset = ct()
    dataset.private_block(0x0009, "ACME", create=True).add_new(0x01, "LO", "special")
    assert header_of(dataset).values(0x00091001) == ("special",)


def test_pixels_and_sequences_are_not_in_the_header():
    header = header_of(ct(ReferencedStudySequence=Sequence([ct()])))
    assert 0x7FE00010 not in header.elements
    assert 0x00081110 not in header.elements


def test_a_long_value_is_cut():
    assert len(header_of(ct(TextValue="x" * 100_000)).text(0x0040A160)) == LONGEST_VALUE_BYTES


@pytest.mark.parametrize("syntax", SYNTAXES)
@pytest.mark.parametrize("keep", [1, 7, 9, 60, -1, -20])
def test_an_object_that_was_cut_short_is_noticed(syntax, keep):
    content = encoded(ct(), transfer_syntax_uid=syntax)
    with pytest.raises(UnreadableError):
        read_header(content[:keep], transfer_syntax_uid=syntax)


def test_an_empty_data_set_is_unreadable():
    with pytest.raises(UnreadableError, match="empty"):
        read_header(b"", transfer_syntax_uid=ExplicitVRLittleEndian)


def test_zero_padding_at_the_end_is_let_pass():
    content = encoded(ct()) + b"\0"
    assert read_header(content, transfer_syntax_uid=ExplicitVRLittleEndian).text(MODALITY) == "CT"


def test_a_deflated_data_set_is_inflated():
    deflater = zlib.compressobj(wbits=-zlib.MAX_WBITS)
    content = deflater.compress(encoded(ct())) + deflater.flush()
    assert read_header(content, transfer_syntax_uid=DeflatedExplicitVRLittleEndian).text(MODALITY) == "CT"
    with pytest.raises(UnreadableError):
        read_header(content[: len(content) // 2], transfer_syntax_uid=DeflatedExplicitVRLittleEndian)


def test_sequences_without_end_are_not_followed_for_ever():
    deep = struct.pack("<HH2sHL", 0x0008, 0x1110, b"SQ", 0, 0xFFFFFFFF) + struct.pack(
        "<HHL", 0xFFFE, 0xE000, 0xFFFFFFFF
    )
    with pytest.raises(UnreadableError, match=f"deeper than {DEEPEST_SEQUENCE}"):
        read_header(deep * (DEEPEST_SEQUENCE + 5), transfer_syntax_uid=ExplicitVRLittleEndian)


@settings(max_examples=300)
@given(st.binary(min_size=1, max_size=400), st.sampled_from(SYNTAXES))
def test_random_bytes_are_read_or_refused_and_nothing_else(content, syntax):
    try:
        header = read_header(content, transfer_syntax_uid=syntax)
    except UnreadableError:
        return
    assert all(header.values(tag) for tag in header.elements)


@pytest.mark.parametrize(
    "name",
    [
        "CT_small.dcm", "MR_small.dcm", "MR_small_implicit.dcm", "MR_small_bigendian.dcm",
        "MR_small_RLE.dcm", "JPEG2000.dcm", "rtplan.dcm", "rtdose.dcm", "waveform_ecg.dcm",
        "reportsi.dcm", "image_dfl.dcm", "UN_sequence.dcm", "nested_priv_SQ.dcm", "ExplVR_BigEnd.dcm",
        "SC_rgb_jpeg_dcmtk.dcm",
    ],
)  # fmt: skip
def test_real_files_read_as_pydicom_reads_them(name):
    path = get_testdata_file(name, download=False)
    assert path, name
    content = Path(path).read_bytes()
    expected = pydicom.dcmread(path, stop_before_pixels=True)
    header = read_file_header(content)
    for keyword in ("SOPInstanceUID", "SOPClassUID", "Modality", "PatientID", "StudyInstanceUID", "Rows"):
        if keyword in expected:
            assert header.text(expected[keyword].tag) == str(expected[keyword].value or ""), keyword


def test_a_file_of_the_spool_reads_as_the_object_did():
    instance = received(ct(SeriesDescription="Thorax"), transfer_syntax_uid=ImplicitVRLittleEndian)
    header = read_file_header(as_file(instance))
    assert header == read_header(instance.data_set, transfer_syntax_uid=ImplicitVRLittleEndian)


@pytest.mark.parametrize(
    "content", [b"", b"no dicom" * 40, b"\0" * 128 + b"DICM" + b"\x02\0\0\0UL\x04\0\xff\xff\xff\xff"]
)
def test_what_is_no_dicom_file_is_refused(content):
    with pytest.raises(UnreadableError):
        read_file_header(content)


def test_what_grows_beyond_the_bound_when_inflated_is_refused(monkeypatch):
    monkeypatch.setattr(header_module, "HARMLESS_INFLATED_BYTES", 10_000)
    private = struct.pack("<HH2sHL", 0x7FE0, 0x0010, b"OW", 0, 5_000_000) + b"\0" * 5_000_000
    deflater = zlib.compressobj(wbits=-zlib.MAX_WBITS)
    bomb = deflater.compress(private) + deflater.flush()
    with pytest.raises(UnreadableError, match="grows too large"):
        read_header(bomb, transfer_syntax_uid=DeflatedExplicitVRLittleEndian)


def test_empty_private_elements_are_passed_over():
    content = struct.pack("<HH2sH", 0x0011, 0x1000, b"LO", 0) + struct.pack("<HH2sH2s", 0x0011, 0x1001, b"LO", 2, b"ab")
    header = read_header(content, transfer_syntax_uid=ExplicitVRLittleEndian)
    assert header.values(0x00111000) is None
    assert header.values(0x00111001) == ("ab",)


def test_an_instance_of_countless_elements_keeps_a_bounded_number():
    content = b"".join(
        struct.pack("<HH2sH2s", 0x0010 + 2 * (number >> 16), number & 0xFFFF, b"LO", 2, b"ab")
        for number in range(MOST_ELEMENTS + 9)
    )
    header = read_header(content, transfer_syntax_uid=ExplicitVRLittleEndian)
    assert len(header.elements) == MOST_ELEMENTS
    assert header.left_out_count == 10


def test_an_element_of_unknown_vr_is_read_as_the_dictionary_says_or_as_text():
    explicit = struct.pack("<HH2sHL", 0x0008, 0x0060, b"UN", 0, 2) + b"CT"
    assert read_header(explicit, transfer_syntax_uid=ExplicitVRLittleEndian).values(MODALITY) == ("CT",)
    text = struct.pack("<HHL", 0x0011, 0x1001, 4) + b"T1\\a"
    binary = struct.pack("<HHL", 0x0011, 0x1002, 4) + b"\x01\x02\x03\x04"
    header = read_header(text + binary, transfer_syntax_uid=ImplicitVRLittleEndian)
    assert header.values(0x00111001) == ("T1", "a")
    assert header.values(0x00111002) is None


def walked_with_care(content, syntax):
    """Read without the tight loop: it finds nothing plain."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(header_module, "_take_plain", lambda _data, at, *, end, into: at)
        return outcome(content, syntax)


def outcome(content, syntax):
    try:
        return read_header(content, transfer_syntax_uid=syntax)
    except UnreadableError as error:
        return str(error)


VRS = st.sampled_from(
    [b"LO", b"UI", b"PN", b"US", b"AT", b"FD", b"UT", b"UN", b"OB", b"OW", b"SQ", b"ZZ", b"\0\0", b"U8"]
)
GROUPS = st.sampled_from([0x0008, 0x0010, 0x0009, 0x0028, 0x7FE0, 0xFFFE, 0x0002])
NUMBERS = st.sampled_from([0x0000, 0x0005, 0x0010, 0x0011, 0x0060, 0x0103, 0x0106, 0x1001, 0xE000, 0xE00D, 0xE0DD])
LONG_VRS = (b"UT", b"UN", b"OB", b"OW", b"SQ", b"ZZ")


@st.composite
def elements(draw):
    group, number, vr, value = draw(GROUPS), draw(NUMBERS), draw(VRS), draw(st.binary(max_size=24))
    length = draw(st.sampled_from([len(value), len(value), len(value), 0, 5, 0xFFFF, 0xFFFFFFFF]))
    if vr in LONG_VRS:
        return struct.pack("<HH2sHL", group, number, vr, 0, length) + value
    return struct.pack("<HH2sH", group, number, vr, length & 0xFFFF) + value


@st.composite
def mutated(draw):
    content = bytearray(draw(st.one_of(st.just(WHOLE), st.lists(elements(), min_size=1, max_size=30).map(b"".join))))
    for _ in range(draw(st.integers(0, 4))):
        at = draw(st.integers(0, len(content) - 1))
        content[at : at + draw(st.integers(0, 3))] = draw(st.binary(max_size=4))
    content += b"\0" * draw(st.integers(0, 9))
    return bytes(content[: draw(st.integers(1, len(content)))]) if draw(st.booleans()) else bytes(content)


WHOLE = encoded(ct(ReferencedStudySequence=Sequence([ct()]), PatientComments="x", PixelRepresentation=1))


@settings(max_examples=600, deadline=None)
@given(mutated(), st.sampled_from(SYNTAXES), st.booleans())
def test_the_tight_loop_reads_what_the_careful_walk_reads(content, syntax, in_memory):
    given_as = content if in_memory else memoryview(content)
    assert outcome(given_as, syntax) == walked_with_care(content, syntax)


def test_the_tight_loop_keeps_to_the_bounds_of_the_careful_walk(monkeypatch):
    monkeypatch.setattr(header_module, "MOST_ELEMENTS", 6)
    monkeypatch.setattr(header_module, "LONGEST_VALUE_BYTES", 10)
    read = outcome(WHOLE, ExplicitVRLittleEndian)
    assert read == walked_with_care(WHOLE, ExplicitVRLittleEndian)
    assert len(read.elements) == 6
    assert read.left_out_count


def test_of_an_element_that_stands_twice_the_first_counts():
    twice = b"".join(struct.pack("<HH2sH2s", 0x0010, 0x0010, b"PN", 2, name) for name in (b"A ", b"B "))
    assert outcome(twice + WHOLE, ExplicitVRLittleEndian).values(PATIENT_NAME) == ("A",)


def test_what_a_stranger_sends_is_not_remembered_without_end(monkeypatch):
    monkeypatch.setattr(header_module, "_MOST_HEADS", 50)
    content = b"".join(struct.pack("<HH2sH2s", 0x0010, number, b"LO", 2, b"ab") for number in range(400))
    assert len(read_header(content, transfer_syntax_uid=ExplicitVRLittleEndian).elements) == 401
    assert len(header_module._known_heads) <= 50


@pytest.mark.parametrize("syntax", SYNTAXES)
def test_what_lies_beyond_the_beginning_is_read_as_well(monkeypatch, syntax):
    content = encoded(ct(ReferencedStudySequence=Sequence([ct()])), transfer_syntax_uid=syntax)
    expected = read_header(content, transfer_syntax_uid=syntax)
    for beginning_bytes in (1, 14, 100, len(content) - 5):
        monkeypatch.setattr(header_module, "BEGINNING_BYTES", beginning_bytes)
        assert read_header(memoryview(content), transfer_syntax_uid=syntax) == expected


def test_a_meta_length_of_gigabytes_is_refused():
    content = b"\0" * 128 + b"DICM" + b"\x02\0\0\0UL\x04\0\0\0\0\x40" + b"\0" * 64
    with pytest.raises(UnreadableError, match="meta information"):
        read_file_header(content)
