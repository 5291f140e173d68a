"""What a trigger has conditions on: tags in three spellings, and where a study came from."""

from __future__ import annotations

import pytest

from flows_engine.definition.trigger_key import ORIGIN_KEYS, parse_key, parse_tag


@pytest.mark.parametrize("written", ["Modality", "00080060", "(0008,0060)", "(0008, 0060)", " Modality "])
def test_a_tag_has_three_spellings(written: str) -> None:
    assert parse_tag(written) == "00080060"


def test_letters_of_a_number_are_in_upper_case() -> None:
    assert parse_tag("7fe000aB") == "7FE000AB"


@pytest.mark.parametrize("written", ["0008 0060", "(00080060", "0008,0060", "8,60", "0008006", ""])
def test_what_only_looks_like_a_tag_is_refused(written: str) -> None:
    with pytest.raises(ValueError, match="no DICOM keyword"):
        parse_tag(written)


@pytest.mark.parametrize("written", ["PixelData", "7FE00010", "ReferencedSeriesSequence", "EncapsulatedDocument"])
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
