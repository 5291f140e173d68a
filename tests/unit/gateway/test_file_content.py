from __future__ import annotations

import os
import tracemalloc

import pytest
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian

from dicom_gateway.file_content import file_content
from dicom_gateway.file_meta import file_meta
from flows_engine.handoff.header import UnreadableError, read_file_header
from tests.fakes.instances import ct, encoded

ROWS = 0x00280010
SIZE_BYTES = 300_000_000


@pytest.fixture
def large_file(tmp_path):
    """A CT of 300 MB, most of which is not on disk: its pixels are zero."""
    data_set = encoded(ct(SOPInstanceUID="1.2.3", PixelData=b"\0" * 32))
    head = file_meta(sop_class_uid=CTImageStorage, sop_instance_uid="1.2.3", transfer_syntax_uid=ExplicitVRLittleEndian)
    path = tmp_path / "large.dcm"
    with path.open("wb") as file:
        file.write(head + data_set[:-36] + SIZE_BYTES.to_bytes(4, "little"))
        file.truncate(file.tell() + SIZE_BYTES)
    return path


def test_a_small_file_is_what_it_holds(tmp_path):
    path = tmp_path / "small"
    path.write_bytes(b"x" * 10)
    with file_content(path) as content:
        assert content == b"x" * 10


def test_an_empty_file_is_empty(tmp_path):
    (tmp_path / "empty").touch()
    with file_content(tmp_path / "empty") as content:
        assert content == b""


def test_a_file_within_a_folder_that_is_open(tmp_path):
    (tmp_path / "small").write_bytes(b"x")
    folder = os.open(tmp_path, os.O_RDONLY | os.O_DIRECTORY)
    with file_content("small", folder=folder) as content:
        assert content == b"x"
    os.close(folder)


def test_the_header_of_a_large_file_is_read_without_the_file(large_file):
    tracemalloc.start()
    with file_content(large_file) as content:
        header = read_file_header(content)
    _, most_bytes = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert header.text(ROWS) == "4"
    assert most_bytes < 5_000_000


def test_a_large_file_that_was_cut_short_is_seen_to_be(large_file):
    os.truncate(large_file, large_file.stat().st_size - 1)
    with file_content(large_file) as content, pytest.raises(UnreadableError, match="1 bytes beyond the end"):
        read_file_header(content)
