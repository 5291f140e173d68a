"""What a trigger has conditions on: tags in three spellings, and where a study came from."""

from __future__ import annotations

import pytest

from flows_engine.definition.trigger_key import (
    DEEPEST_PATH,
    ORIGIN_KEYS,
    PrivateTag,
    is_deep,
    levels,
    parse_key,
    parse_tag,
)


@pytest.mark.parametrize("written", ["Modality", "00080060", "(0008,0060)", "(0008, 0060)", " Modality "])
def test_a_tag_has_three_spellings(written: str) -> None:
    assert parse_tag(written) == "00080060"


def test_letters_of_a_number_are_in_upper_case() -> None:
    assert parse_tag("7fe000aB") == "7FE000AB"


@pytest.mark.parametrize("written", ["0008 0060", "(00080060", "0008,0060", "8,60", "0008006", ""])
def test_what_only_looks_like_a_tag_is_refused(written: str) -> None:
    with pytest.raises(ValueError, match="no DICOM keyword"):
        parse_tag(written)


@pytest.mark.parametrize("written", ["PixelData", "7FE00010", "EncapsulatedDocument"])
def test_a_tag_without_text_is_refused(written: str) -> None:
    with pytest.raises(ValueError, match="no text to match"):
        parse_tag(written)


@pytest.mark.parametrize("written", ["00091001", "TransferSyntaxUID", "InstanceNumber", "OffendingElement"])
def test_private_file_meta_number_and_tag_elements_can_be_matched(written: str) -> None:
    assert len(parse_tag(written)) == 8


@pytest.mark.parametrize(
    ("written", "meant"),
    [("Modalty", "Modality"), ("seriesDescription", "SeriesDescription"), ("SopClassUID", "SOPClassUID")],
)
def test_a_misspelt_keyword_is_answered_with_the_right_one(written: str, meant: str) -> None:
    with pytest.raises(ValueError, match=f"did you mean {meant}"):
        parse_tag(written)


def test_a_long_key_is_shown_shortened() -> None:
    with pytest.raises(ValueError, match="no DICOM keyword") as caught:
        parse_tag("x" * 100_000)

    assert len(str(caught.value)) < 200


@pytest.mark.parametrize("key", ORIGIN_KEYS)
def test_where_a_study_comes_from_has_keys_of_its_own(key: str) -> None:
    assert parse_key(f" {key} ") == key


@pytest.mark.parametrize(
    ("written", "hint"),
    [
        ("Sender.AETitel", "did you mean Sender.AETitle"),
        ("sender.host", "did you mean Sender.Host"),
        ("Called.AeTitle", "did you mean Called.AETitle"),
        ("Sender.Colour", "known are Sender.AETitle"),
    ],
)
def test_a_misspelt_origin_is_answered_with_the_right_one(written: str, hint: str) -> None:
    with pytest.raises(ValueError, match=hint):
        parse_key(written)


@pytest.mark.parametrize(
    "written",
    [
        "RequestAttributesSequence.ScheduledProcedureStepDescription",
        "00400275.00400007",
        "(0040,0275).(0040, 0007)",
        " RequestAttributesSequence . 00400007 ",
    ],
)
def test_a_path_has_the_spellings_of_its_tags(written: str) -> None:
    assert parse_key(written) == "00400275.00400007"
    assert levels("00400275.00400007") == (0x00400275, 0x00400007)
    assert is_deep(parse_key(written))


@pytest.mark.parametrize(
    "written",
    ['(0029,"A.B (C)",10)', "(0029,'A.B (C)',10)", '(0029, "A.B (C)", xx10)', ' (0029,"A.B (C) ",10) '],
)
def test_a_private_element_is_named_by_its_creator(written: str) -> None:
    assert parse_key(written) == '(0029,"A.B (C)",10)'
    assert levels(parse_key(written)) == (PrivateTag(group=0x29, creator="A.B (C)", number=0x10),)
    assert is_deep(parse_key(written))


def test_private_elements_may_stand_anywhere_in_a_path() -> None:
    key = parse_key('(0021,"SIEMENS MR SDS 01",fe).00291010.(0021,"X",0a)')
    assert key == '(0021,"SIEMENS MR SDS 01",FE).00291010.(0021,"X",0A)'
    assert parse_key(key) == key
    assert [type(level) for level in levels(key)] == [PrivateTag, int, PrivateTag]


def test_what_the_fingerprint_holds_is_not_deep() -> None:
    assert not any(is_deep(key) for key in ("00080060", "00291010", *ORIGIN_KEYS))


@pytest.mark.parametrize(
    ("written", "reason"),
    [
        ("ReferencedSeriesSequence", "is a sequence, which has no text"),
        ("Modality.PatientID", "'Modality' is no sequence"),
        ("RequestAttributesSequence.PixelData", "no text to match"),
        ("RequestAttributesSequence.", "no DICOM keyword"),
        (".Modality", "no DICOM keyword"),
        ("RequestAttributeSequence.Modality", "did you mean RequestAttributesSequence"),
        ('(0028,"X",10)', "no private tag; write it like"),
        ('(0029,"",10)', "no private creator"),
        ('(0029,"a\\\\b",10)', "no private creator"),
        (f'(0029,"{"x" * 65}",10)', "no private creator"),
        ('(0029,"X",1010)', "no private tag; write it like"),
        ('RequestAttributesSequence.(0029,"X,10)', "no private tag; write it like"),
        (".".join(["00081110"] * DEEPEST_PATH + ["00080060"]), f"more than {DEEPEST_PATH} levels"),
        ("x." * 100_000, "no DICOM keyword"),
    ],
)
def test_a_path_that_leads_nowhere_is_refused(written: str, reason: str) -> None:
    with pytest.raises(ValueError, match=reason) as caught:
        parse_key(written)
    assert len(str(caught.value)) < 300
