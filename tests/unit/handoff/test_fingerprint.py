from __future__ import annotations

from pydicom.uid import ExplicitVRLittleEndian, ImplicitVRLittleEndian

from flows_engine.handoff.fingerprint import MOST_TAGS, FingerprintBuilder
from flows_engine.handoff.header import Header, read_header
from tests.fakes.instances import ct, encoded


def fingerprint_of(*datasets, syntax=ExplicitVRLittleEndian):
    builder = FingerprintBuilder()
    for dataset in datasets:
        content = encoded(dataset, transfer_syntax_uid=syntax)
        builder.add(read_header(content, transfer_syntax_uid=syntax))
    return builder.build()


def test_a_value_that_instances_share_is_kept_once():
    fingerprint = fingerprint_of(*[ct() for _ in range(5)])
    assert fingerprint.instance_count == 5
    assert fingerprint.columns["00080060"].values == (("CT",),)
    assert fingerprint.columns["00080060"].index == (0, 0, 0, 0, 0)
    assert fingerprint.columns["00080018"].index == (0, 1, 2, 3, 4)


def test_a_lacking_tag_is_marked_wherever_it_lacks():
    fingerprint = fingerprint_of(
        ct(SeriesDescription=None), ct(SeriesDescription="a"), ct(SeriesDescription=None), ct(SeriesDescription="b"),
        ct(SeriesDescription=None),
    )  # fmt: skip
    column = fingerprint.columns["0008103E"]
    assert column.index == (-1, 0, -1, 1, -1)
    assert column.values == (("a",), ("b",))


def test_every_column_is_as_long_as_the_study():
    fingerprint = fingerprint_of(ct(), ct(PatientID=None), ct(EchoTime=3))
    assert {len(column.index) for column in fingerprint.columns.values()} == {3}


def test_the_same_text_in_two_character_sets_is_one_value():
    fingerprint = fingerprint_of(
        ct(SpecificCharacterSet="ISO_IR 100", PatientName="Müller"),
        ct(SpecificCharacterSet="ISO_IR 192", PatientName="Müller"),
    )
    assert fingerprint.columns["00100010"].values == (("Müller",),)
    assert fingerprint.columns["00100010"].index == (0, 0)


def test_the_transfer_syntax_can_be_matched():
    assert fingerprint_of(ct(), syntax=ImplicitVRLittleEndian).columns["00020010"].values == (
        (ImplicitVRLittleEndian,),
    )


def test_an_empty_study_has_no_columns():
    assert FingerprintBuilder().build().columns == {}


def header_of(tags):
    return Header(elements=dict.fromkeys(tags, ("LO", b"x")), little_endian=True)


def test_standard_tags_take_the_place_of_private_ones_and_what_is_left_out_is_counted():
    builder = FingerprintBuilder()
    private = range(0x00111000, 0x00111000 + MOST_TAGS + 50)
    builder.add(header_of(private))
    builder.add(header_of([0x00080060, 0x00100020, private[0]]))
    fingerprint = builder.build()
    assert len(fingerprint.columns) == MOST_TAGS
    assert fingerprint.columns["00080060"].index == (-1, 0)
    assert fingerprint.columns["00100020"].index == (-1, 0)
    assert fingerprint.columns["00111000"].index == (0, 0)
    assert fingerprint.left_out_count == 52


def test_standard_tags_are_bounded_too():
    builder = FingerprintBuilder()
    builder.add(header_of(range(0x00080000, 0x00080000 + MOST_TAGS + 1)))
    assert len(builder.build().columns) == MOST_TAGS
    assert builder.build().left_out_count == 1


def test_the_same_bytes_in_two_character_sets_are_two_values():
    fingerprint = fingerprint_of(
        ct(SpecificCharacterSet="ISO_IR 100", PatientName="\u00e9\u00e8"),
        ct(SpecificCharacterSet="ISO_IR 101", PatientName="\u00e9\u010d"),
        ct(SpecificCharacterSet="ISO_IR 100", PatientName="\u00e9\u00e8"),
    )
    assert fingerprint.columns["00100010"].values == (("\u00e9\u00e8",), ("\u00e9\u010d",))
    assert fingerprint.columns["00100010"].index == (0, 1, 0)
