from __future__ import annotations

import struct
import tracemalloc

import pytest
from pydicom.uid import ExplicitVRBigEndian, ExplicitVRLittleEndian, ImplicitVRLittleEndian

from flows_engine.handoff.header import UnreadableError, read_header
from flows_engine.handoff.header_file import read_file_header_at, read_open_file_header
from tests.fakes.instances import as_file, ct, received


def written(path, dataset, syntax=ExplicitVRLittleEndian):
    instance = received(dataset, transfer_syntax_uid=syntax)
    path.write_bytes(as_file(instance))
    return instance


@pytest.mark.parametrize("syntax", [ExplicitVRLittleEndian, ImplicitVRLittleEndian, ExplicitVRBigEndian])
def test_a_file_reads_as_the_object_did(tmp_path, syntax):
    instance = written(tmp_path / "a.dcm", ct(), syntax)
    expected = read_header(instance.data_set, transfer_syntax_uid=syntax)
    assert read_file_header_at(tmp_path / "a.dcm") == expected
    with (tmp_path / "a.dcm").open("rb") as file:
        file.seek(7)
        assert read_open_file_header(file.fileno()) == expected


def test_an_empty_file_is_refused(tmp_path):
    (tmp_path / "a.dcm").touch()
    with pytest.raises(UnreadableError, match="empty"):
        read_file_header_at(tmp_path / "a.dcm")


@pytest.mark.parametrize("keep", [100, 140, 200, 0.5, 0.99])
def test_a_file_that_was_cut_short_is_refused(tmp_path, keep):
    path = tmp_path / "a.dcm"
    written(path, ct())
    content = path.read_bytes()
    path.write_bytes(content[: keep if keep > 1 else int(len(content) * keep)])
    with pytest.raises(UnreadableError):
        read_file_header_at(path)


def test_an_object_of_gigabytes_takes_no_memory(tmp_path):
    path = tmp_path / "a.dcm"
    instance = received(ct())
    pixel_element_bytes = 12 + 32
    pixels = struct.pack("<HH2sHL", 0x7FE0, 0x0010, b"OW", 0, 3 << 30)
    behind = struct.pack("<HH2sH2s", 0x7FE1, 0x1001, b"LO", 2, b"ab")
    with path.open("wb") as file:
        file.write(as_file(instance)[:-pixel_element_bytes] + pixels)
        file.seek(3 << 30, 1)
        file.write(behind)
    tracemalloc.start()
    try:
        header = read_file_header_at(path)
        _, peak_bytes = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert header.values(0x7FE11001) == ("ab",)
    assert peak_bytes < 1_000_000
