from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydicom import dcmread
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import (
    CTImageStorage,
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    MRImageStorage,
)

from flows_engine.destinations.part10_head import NotSendableError, read_head
from flows_engine.errors import WorkspaceError
from tests.factories import ct_slice, leaked_canaries


def _save(path: Path, syntax: str = ExplicitVRLittleEndian) -> Path:
    dataset = Dataset()
    dataset.update(ct_slice())
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = syntax
    dataset.save_as(path, enforce_file_format=True)
    return path


@pytest.mark.parametrize(
    "syntax",
    [ExplicitVRLittleEndian, ImplicitVRLittleEndian, ExplicitVRBigEndian, DeflatedExplicitVRLittleEndian],
)
def test_the_head_says_what_pydicom_says(tmp_path: Path, syntax: str) -> None:
    path = _save(tmp_path / "a.dcm", syntax)
    head, dataset = read_head(path), dcmread(path)
    assert head.sop_class_uid == dataset.SOPClassUID == CTImageStorage
    assert head.sop_instance_uid == dataset.SOPInstanceUID
    assert head.transfer_syntax_uid == syntax
    meta_bytes = 132 + 12 + dataset.file_meta.FileMetaInformationGroupLength
    assert head.data_set_offset == meta_bytes


def test_the_data_set_is_believed_where_the_meta_information_says_otherwise(tmp_path: Path) -> None:
    path = _save(tmp_path / "a.dcm")
    dataset = dcmread(path)
    raw = path.read_bytes()
    meta = dataset.file_meta.MediaStorageSOPInstanceUID.encode()
    place = raw.index(meta)
    path.write_bytes(raw[:place] + meta[:-1] + (b"1" if meta[-1:] != b"1" else b"2") + raw[place + len(meta) :])
    assert read_head(path).sop_instance_uid == dataset.SOPInstanceUID


def test_the_meta_information_is_believed_where_the_data_set_says_nothing(tmp_path: Path) -> None:
    dataset = ct_slice()
    dataset.file_meta.MediaStorageSOPClassUID = MRImageStorage
    dataset.file_meta.MediaStorageSOPInstanceUID = "1.2.3"
    del dataset.SOPClassUID
    del dataset.SOPInstanceUID
    dataset.save_as(tmp_path / "a.dcm", enforce_file_format=False)
    raw = (tmp_path / "a.dcm").read_bytes()
    (tmp_path / "a.dcm").write_bytes(raw if raw[128:132] == b"DICM" else bytes(128) + b"DICM" + raw)
    head = read_head(tmp_path / "a.dcm")
    assert (head.sop_class_uid, head.sop_instance_uid) == (MRImageStorage, "1.2.3")


@pytest.mark.parametrize("uid", ["../../etc/x", "1.2.3\n", "1.2." + "3" * 61, "ü", "1..2", ".1.2"])
def test_what_is_not_a_uid_is_not_sent_and_not_repeated(tmp_path: Path, uid: str) -> None:
    dataset = ct_slice()
    dataset.save_as(tmp_path / "a.dcm", enforce_file_format=True)
    raw = (tmp_path / "a.dcm").read_bytes()
    old = str(dataset.SOPInstanceUID).encode()
    old += b"\0" * (len(old) % 2)
    new = uid.encode()
    new = (new + b"\0" * (len(new) % 2)).ljust(len(old), b"\0")
    if len(new) != len(old):
        header = b"\x08\x00\x18\x00UI"
        place = raw.index(header)
        raw = raw[:place] + header + len(new).to_bytes(2, "little") + new + raw[place + 8 + len(old) :]
    else:
        place = raw.rindex(old)
        raw = raw[:place] + new + raw[place + len(old) :]
    (tmp_path / "a.dcm").write_bytes(raw)
    with pytest.raises(NotSendableError, match="SOP Instance UID is not a valid UID") as caught:
        read_head(tmp_path / "a.dcm")
    assert uid not in str(caught.value)


@pytest.mark.parametrize("content", [b"", b"DICM", bytes(128) + b"DICM", b"x" * 500])
def test_what_is_not_dicom_says_so(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "a").write_bytes(content)
    with pytest.raises(NotSendableError):
        read_head(tmp_path / "a")


@pytest.mark.parametrize("private_bytes", [40_000, 500_000])
def test_meta_information_of_any_length_is_passed_over_whole(tmp_path: Path, private_bytes: int) -> None:
    dataset = dcmread(_save(tmp_path / "a.dcm"))
    dataset.file_meta.PrivateInformationCreatorUID = "1.2.3"
    dataset.file_meta.PrivateInformation = b"p" * private_bytes
    dataset.save_as(tmp_path / "b.dcm", enforce_file_format=True)
    head = read_head(tmp_path / "b.dcm")
    written = dcmread(tmp_path / "b.dcm").file_meta
    assert head.data_set_offset == 132 + 12 + written.FileMetaInformationGroupLength > private_bytes
    assert head.sop_instance_uid == dataset.SOPInstanceUID


@pytest.mark.parametrize("cut_at", [300, 20_000])
def test_meta_information_that_does_not_end_is_not_sent(tmp_path: Path, cut_at: int) -> None:
    dataset = dcmread(_save(tmp_path / "a.dcm"))
    dataset.file_meta.PrivateInformationCreatorUID = "1.2.3"
    dataset.file_meta.PrivateInformation = b"p" * 40_000
    dataset.save_as(tmp_path / "b.dcm", enforce_file_format=True)
    (tmp_path / "c.dcm").write_bytes((tmp_path / "b.dcm").read_bytes()[:cut_at])
    with pytest.raises(NotSendableError, match="incomplete"):
        read_head(tmp_path / "c.dcm")


def test_meta_information_without_its_length_is_not_cut_where_our_reading_ends(tmp_path: Path) -> None:
    raw = _save(tmp_path / "a.dcm").read_bytes()
    end = read_head(tmp_path / "a.dcm").data_set_offset
    private = b"\x02\x00\x02\x01OB\x00\x00" + (40_000).to_bytes(4, "little") + b"p" * 40_000
    (tmp_path / "b.dcm").write_bytes(raw[:132] + raw[144:end] + private + raw[end:])
    with pytest.raises(NotSendableError, match="incomplete"):
        read_head(tmp_path / "b.dcm")


def test_a_meta_group_length_that_promises_too_much_is_not_read(tmp_path: Path) -> None:
    raw = _save(tmp_path / "a.dcm").read_bytes()
    (tmp_path / "b.dcm").write_bytes(raw[:140] + b"\xff\xff\xff\xff" + raw[144:])
    with pytest.raises(NotSendableError, match="longer than"):
        read_head(tmp_path / "b.dcm")


def test_a_uid_that_the_gateway_takes_is_sent(tmp_path: Path) -> None:
    raw = _save(tmp_path / "a.dcm").read_bytes()
    uid = str(dcmread(tmp_path / "a.dcm").SOPInstanceUID)
    lenient = ("1.02.3." + "4" * 64)[: len(uid)]
    (tmp_path / "b.dcm").write_bytes(raw.replace(uid.encode(), lenient.encode()))
    assert read_head(tmp_path / "b.dcm").sop_instance_uid == lenient


def test_a_fifo_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    with pytest.raises(WorkspaceError):
        read_head(tmp_path / "fifo")


@given(data=st.data())
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
def test_a_damaged_file_is_read_or_refused_and_no_patient_is_named(tmp_path: Path, data: st.DataObject) -> None:
    path = tmp_path / "a.dcm"
    raw = bytearray(_save(path).read_bytes()[:1500])
    for _ in range(data.draw(st.integers(0, 8))):
        raw[data.draw(st.integers(0, len(raw) - 1))] = data.draw(st.integers(0, 255))
    path.write_bytes(raw[: data.draw(st.integers(0, len(raw)))])
    said = ""
    try:
        head = read_head(path)
    except NotSendableError as error:
        said = str(error)
    else:
        assert set(head.sop_instance_uid) <= set("0123456789.")
        assert 132 <= head.data_set_offset <= path.stat().st_size
    assert leaked_canaries(said) == []


def test_what_was_never_written_is_not_sent(tmp_path: Path) -> None:
    path = _save(tmp_path / "a.dcm")
    for size_bytes in (2**29, 2**40):
        os.truncate(path, size_bytes)
        if size_bytes < 2**30:
            assert read_head(path).sop_class_uid == CTImageStorage
    with pytest.raises(NotSendableError, match="a file with holes"):
        read_head(path)
