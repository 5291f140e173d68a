from __future__ import annotations

from pathlib import Path

import pydicom
import pytest
from pydicom.uid import ExplicitVRLittleEndian, RLELossless

from deployments.demo.studies import COLUMNS, ROWS, data_sets, write_studies


@pytest.fixture(scope="module")
def sent(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sent")
    assert len(write_studies(folder, slice_count=3)) == 4
    return folder


def test_the_made_slices_are_one_series_of_full_size_and_the_last_one_is_compressed(sent: Path):
    slices = [pydicom.dcmread(path) for path in sorted(sent.glob("slice-*.dcm"))]

    assert [slice_.file_meta.TransferSyntaxUID for slice_ in slices] == [
        ExplicitVRLittleEndian,
        ExplicitVRLittleEndian,
        RLELossless,
    ]
    assert len({slice_.SeriesInstanceUID for slice_ in slices}) == 1
    assert len({slice_.SOPInstanceUID for slice_ in slices}) == 3
    assert all(slice_.pixel_array.shape == (ROWS, COLUMNS) for slice_ in slices)
    assert len({slice_.PixelData for slice_ in slices}) == 3


def test_the_real_one_is_of_another_patient(sent: Path):
    real = pydicom.dcmread(sent / "pydicom-ct.dcm")
    made = pydicom.dcmread(sent / "slice-001.dcm")

    assert real.PatientID != made.PatientID
    assert real.StudyInstanceUID != made.StudyInstanceUID


def test_data_sets_are_equal_whoever_wrote_the_file(sent: Path, tmp_path: Path):
    path = sent / "slice-003.dcm"
    instance = pydicom.dcmread(path)
    instance.file_meta.ImplementationVersionName = "SOMEBODY_ELSE_1"
    instance.file_meta.SourceApplicationEntityTitle = "PACS"
    instance.save_as(tmp_path / "received", enforce_file_format=True)
    uid = str(instance.SOPInstanceUID)

    assert (tmp_path / "received").read_bytes() != path.read_bytes()
    assert data_sets(tmp_path)[uid] == data_sets(sent)[uid]
    assert len(data_sets(sent)) == 4


def test_a_single_byte_makes_a_difference(sent: Path, tmp_path: Path):
    content = bytearray((sent / "slice-001.dcm").read_bytes())
    content[-1] ^= 1
    (tmp_path / "received").write_bytes(content)
    ((uid, received),) = data_sets(tmp_path).items()

    assert received != data_sets(sent)[uid]
    assert received[:-1] == data_sets(sent)[uid][:-1]
