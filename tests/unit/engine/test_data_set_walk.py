from __future__ import annotations

import struct
import tracemalloc
import zlib
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.encaps import encapsulate
from pydicom.sequence import Sequence
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    RLELossless,
)

import flows_engine.data_set_walk as module
from flows_engine.data_set_walk import UnreadableError, Value, values
from flows_engine.destinations.part10_head import read_head
from flows_engine.output_files import open_regular
from tests.factories import ct_slice

SYNTAXES = [ExplicitVRLittleEndian, ImplicitVRLittleEndian, ExplicitVRBigEndian, DeflatedExplicitVRLittleEndian]
PATIENT_ID, MODALITY, REFERENCE = 0x00100020, 0x00080060, 0x00081155
TOP, DEEP = frozenset({PATIENT_ID, MODALITY}), frozenset({REFERENCE})


def nested(depth: int, *, undefined: bool = False) -> Dataset:
    """An instance with a reference ``depth`` sequences below it, and a patient's id in every item."""
    inner = Dataset()
    inner.ReferencedSOPInstanceUID = "1.2.3"
    for _ in range(depth):
        outer = Dataset()
        inner.PatientID = "NOT AT THE TOP"
        inner.is_undefined_length_sequence_item = undefined
        outer.ReferencedImageSequence = Sequence([inner])
        outer["ReferencedImageSequence"].is_undefined_length = undefined
        inner = outer
    # Every time of the same length.
    uids = dict.fromkeys(("StudyInstanceUID", "SeriesInstanceUID", "FrameOfReferenceUID", "SOPInstanceUID"), "1.2.3.4")
    inner.update(ct_slice(PatientID="ABC ", **uids))
    inner.is_undefined_length_sequence_item = False
    return inner


def save(path: Path, dataset: Dataset, syntax: str = ExplicitVRLittleEndian) -> Path:
    plain = Dataset()
    plain.update(dataset)
    plain.file_meta = FileMetaDataset()
    plain.file_meta.TransferSyntaxUID = syntax
    plain.save_as(path, enforce_file_format=True)
    return path


def read(path: Path, *, deep: frozenset[int] = DEEP) -> list[Value]:
    head = read_head(path)
    with open_regular(path) as file:
        return list(
            values(file, offset=head.data_set_offset, transfer_syntax_uid=head.transfer_syntax_uid, top=TOP, deep=deep)
        )


def written(path: Path, data_set: bytes, syntax: str = ExplicitVRLittleEndian) -> Path:
    """A file whose data set is ``data_set`` behind a SOP class and instance."""
    whole = save(path, ct_slice(), syntax).read_bytes()
    path.write_bytes(whole[: read_head(path).data_set_offset] + data_set)
    return path


def element(tag: int, vr: bytes, value: bytes) -> bytes:
    return struct.pack("<HH2sH", tag >> 16, tag & 0xFFFF, vr, len(value)) + value


@pytest.mark.parametrize("syntax", SYNTAXES)
@pytest.mark.parametrize("undefined", [False, True])
def test_what_is_asked_for_is_found_at_its_depth_alone(tmp_path: Path, syntax: str, undefined: bool) -> None:
    path = save(tmp_path / "a.dcm", nested(3, undefined=undefined), syntax)

    assert [(value.tag, value.raw.strip(b" \0")) for value in read(path)] == [
        (MODALITY, b"CT"),
        (REFERENCE, b"1.2.3"),
        (PATIENT_ID, b"ABC"),
    ]
    assert [value.sequence for value in read(path)] == [0, 0x00081140, 0]
    assert [value.tag for value in read(path, deep=frozenset())] == [MODALITY, PATIENT_ID]


def test_an_unknown_sequence_is_read_as_implicit_vr(tmp_path: Path) -> None:
    item = struct.pack("<HHL", 0x0008, 0x1155, 4) + b"1.9\0"
    items = struct.pack("<HHL", 0xFFFE, 0xE000, len(item)) + item
    head = struct.pack("<HH2sHL", 0x0008, 0x1140, b"UN", 0, len(items))

    assert [value.raw for value in read(written(tmp_path / "a", head + items))] == [b"1.9\0"]


def test_fragments_are_no_items(tmp_path: Path) -> None:
    instance = ct_slice(PatientID="ABC")
    instance.PixelData = encapsulate([b"\xfe\xff\x00\xe0" * 500] * 3)
    instance["PixelData"].VR = "OB"
    instance["PixelData"].is_undefined_length = True

    assert [value.tag for value in read(save(tmp_path / "a", instance, RLELossless))] == [MODALITY, PATIENT_ID]


@pytest.mark.parametrize("announced", [ExplicitVRLittleEndian, ImplicitVRLittleEndian])
def test_the_bytes_are_believed_where_the_other_vr_was_announced(tmp_path: Path, announced: str) -> None:
    other = ImplicitVRLittleEndian if announced == ExplicitVRLittleEndian else ExplicitVRLittleEndian
    path = save(tmp_path / "a", ct_slice(PatientID="ABC"), other)
    data_set = path.read_bytes()[read_head(path).data_set_offset :]

    assert [value.raw for value in read(written(path, data_set, announced))] == [b"CT", b"ABC "]


def test_what_stands_there_twice_is_told_twice(tmp_path: Path) -> None:
    twice = element(PATIENT_ID, b"LO", b"AA") + element(MODALITY, b"CS", b"CT") + element(PATIENT_ID, b"LO", b"BB")

    assert [value.raw for value in read(written(tmp_path / "a", twice))] == [b"AA", b"CT", b"BB"]


def test_zero_bytes_at_the_end_are_padding(tmp_path: Path) -> None:
    path = written(tmp_path / "a", element(PATIENT_ID, b"LO", b"AA") + b"\0" * 6)

    assert [value.raw for value in read(path)] == [b"AA"]


@pytest.mark.parametrize("syntax", SYNTAXES)
def test_a_file_that_was_cut_short_in_a_value_is_unreadable(tmp_path: Path, syntax: str) -> None:
    path = save(tmp_path / "a", nested(2), syntax)
    whole = path.read_bytes()
    for length in range(len(whole) - 500, len(whole) - 1, 37):
        path.write_bytes(whole[:length])
        with pytest.raises(UnreadableError):
            read(path)


@pytest.mark.parametrize(
    ("data_set", "reason"),
    [
        (struct.pack("<HH2sHL", 0x0008, 0x1140, b"SQ", 0, 0xFFFFFFFF) + b"\1" * 16, "no item"),
        (element(PATIENT_ID, b"LO", b"A" * (module.LONGEST_VALUE_BYTES + 2)), "longer than 16384 bytes"),
        (
            (struct.pack("<HH2sHL", 0x0008, 0x1140, b"SQ", 0, 0xFFFFFFFF) + b"\xfe\xff\0\xe0\xff\xff\xff\xff") * 9999,
            "nested deeper than 64",
        ),
        (
            struct.pack("<HH2sHL", 0x0008, 0x1140, b"SQ", 0, 16)
            + struct.pack("<HHL", 0xFFFE, 0xE000, 8)
            + struct.pack("<HH2sH", 0x0008, 0x1155, b"UI", 64)
            + b"\0" * 64,
            "beyond the item",
        ),
    ],
)
def test_what_is_no_data_set_is_unreadable_with_its_reason(tmp_path: Path, data_set: bytes, reason: str) -> None:
    with pytest.raises(UnreadableError, match=reason):
        read(written(tmp_path / "a", data_set))


def test_an_endless_file_comes_to_an_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MOST_ELEMENTS", 1000)
    path = written(tmp_path / "a", b"\0" * 8)
    with path.open("r+b") as file:
        file.truncate(1 << 29)

    with pytest.raises(UnreadableError, match="more than 1000 elements"):
        read(path)


def test_neither_a_bomb_nor_a_heap_of_items_nor_a_huge_value_takes_memory(tmp_path: Path) -> None:
    long = struct.pack("<HH2sHL", 0x0029, 0x1010, b"OB", 0, 1 << 26)
    deflater = zlib.compressobj(wbits=-zlib.MAX_WBITS)
    bomb = deflater.compress(element(PATIENT_ID, b"LO", b"AA") + long)
    bomb += b"".join(deflater.compress(bytes(1 << 20)) for _ in range(1 << 6)) + deflater.flush()
    items = b"\xfe\xff\0\xe0\0\0\0\0" * (1 << 15)
    heap = struct.pack("<HH2sHL", 0x0008, 0x1140, b"SQ", 0, len(items)) + items
    bomb_path = written(tmp_path / "bomb", bomb, DeflatedExplicitVRLittleEndian)
    heap_path, sparse_path = written(tmp_path / "heap", heap), written(tmp_path / "sparse", long)
    with sparse_path.open("r+b") as file:
        file.truncate(sparse_path.stat().st_size + (1 << 26))

    tracemalloc.start()
    try:
        assert [value.raw for value in read(bomb_path)] == [b"AA"]
        assert read(heap_path) == read(sparse_path) == []
        assert tracemalloc.get_traced_memory()[1] < 1 << 20
    finally:
        tracemalloc.stop()


def test_what_is_inflated_has_a_bound(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "LARGEST_INFLATED_BYTES", 1 << 20)
    deflater = zlib.compressobj(wbits=-zlib.MAX_WBITS)
    bomb = deflater.compress(struct.pack("<HH2sHL", 0x0029, 0x1010, b"OB", 0, 1 << 22) + bytes(1 << 22))

    with pytest.raises(UnreadableError, match="inflated to more than"):
        read(written(tmp_path / "a", bomb + deflater.flush(), DeflatedExplicitVRLittleEndian))


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data(), syntax=st.sampled_from(SYNTAXES))
def test_a_damaged_file_is_read_or_unreadable_and_never_anything_else(
    tmp_path: Path, data: st.DataObject, syntax: str
) -> None:
    path = save(tmp_path / "a", nested(2, undefined=data.draw(st.booleans())), syntax)
    offset = read_head(path).data_set_offset
    whole = bytearray(path.read_bytes())
    for _ in range(data.draw(st.integers(1, 5))):
        whole[data.draw(st.integers(offset, len(whole) - 1))] = data.draw(st.integers(0, 255))
    path.write_bytes(whole)
    with open_regular(path) as file, suppress(UnreadableError):
        list(values(file, offset=offset, transfer_syntax_uid=syntax, top=TOP, deep=DEEP))
