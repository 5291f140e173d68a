"""What the demonstration sends: made CT slices, one of them compressed, and a real CT that pydicom ships."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pydicom
from pydicom.data import get_testdata_file
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, RLELossless, generate_uid

ROWS = COLUMNS = 512
_HEADER_END = 144  # 128 bytes of preamble, DICM, and the element (0002,0000) that counts the rest (PS3.10 7.1)


def write_studies(folder: Path, *, slice_count: int) -> list[Path]:
    """Write ``slice_count`` CT slices of one invented patient, the last one RLE-compressed, and pydicom's of another.

    Each slice has 512 x 512 pixels of 16 bits. Returns the files.
    """
    study_uid, series_uid, frame_uid = generate_uid(), generate_uid(), generate_uid()
    y, x = np.mgrid[-1 : 1 : ROWS * 1j, -1 : 1 : COLUMNS * 1j]
    paths = []
    for number in range(1, slice_count + 1):
        instance = _ct_slice(number, study_uid=study_uid, series_uid=series_uid, frame_uid=frame_uid)
        radius = 0.3 + 0.5 * np.sin(np.pi * number / (slice_count + 1))
        phantom = np.where(x**2 + y**2 < radius**2, 1000 + 40 * (x + number / slice_count), 24)
        noise = np.random.default_rng(number).normal(0, 8, phantom.shape)
        instance.PixelData = np.clip(phantom + noise, 0, 4095).astype("<u2").tobytes()
        if number == slice_count:
            instance.compress(RLELossless, generate_instance_uid=False)
        path = folder / f"slice-{number:03}.dcm"
        instance.save_as(path, enforce_file_format=True)
        paths.append(path)
    shipped = get_testdata_file("CT_small.dcm", download=False)
    if not isinstance(shipped, str):
        raise FileNotFoundError("pydicom's own CT_small.dcm is missing from its installation")
    real = pydicom.dcmread(shipped)
    del real.DataSetTrailingPadding  # DCMTK's storescu leaves it out when it sends
    real.save_as(folder / "pydicom-ct.dcm")
    return [*paths, folder / "pydicom-ct.dcm"]


def data_sets(folder: Path) -> dict[str, bytes]:
    """Return the encoded data set of every DICOM file below ``folder``, byte for byte, by SOP Instance UID.

    The preamble and the File Meta Information are left out: each application that writes a file writes its own.
    """
    return {
        str(pydicom.dcmread(path, stop_before_pixels=True).SOPInstanceUID): _data_set(path)
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def _data_set(path: Path) -> bytes:
    content = path.read_bytes()
    meta_length = int.from_bytes(content[_HEADER_END - 4 : _HEADER_END], "little")
    return content[_HEADER_END + meta_length :]


def _ct_slice(number: int, *, study_uid: str, series_uid: str, frame_uid: str) -> Dataset:
    now = datetime.now(UTC)
    instance = Dataset()
    instance.file_meta = FileMetaDataset()
    instance.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    instance.SOPClassUID = CTImageStorage
    instance.SOPInstanceUID = generate_uid()
    instance.StudyInstanceUID = study_uid
    instance.SeriesInstanceUID = series_uid
    instance.FrameOfReferenceUID = frame_uid
    instance.StudyDate = instance.ContentDate = now.strftime("%Y%m%d")
    instance.StudyTime = instance.ContentTime = now.strftime("%H%M%S")
    instance.PatientName = "Demonstration^Phantom"
    instance.PatientID = "DEMO-1"
    instance.PatientBirthDate = ""
    instance.PatientSex = "O"
    instance.AccessionNumber = ""
    instance.ReferringPhysicianName = ""
    instance.StudyID = "1"
    instance.Modality = "CT"
    instance.Manufacturer = "DicomFlow"
    instance.SeriesDescription = "Head phantom"
    instance.SeriesNumber = 1
    instance.InstanceNumber = number
    instance.ImageType = ["ORIGINAL", "PRIMARY", "AXIAL"]
    instance.ImagePositionPatient = [-256.0, -256.0, float(number)]
    instance.ImageOrientationPatient = [1, 0, 0, 0, 1, 0]
    instance.PixelSpacing = [1, 1]
    instance.SliceThickness = 1
    instance.KVP = 120
    instance.RescaleIntercept = -1024
    instance.RescaleSlope = 1
    instance.SamplesPerPixel = 1
    instance.PhotometricInterpretation = "MONOCHROME2"
    instance.Rows, instance.Columns = ROWS, COLUMNS
    instance.BitsAllocated = 16
    instance.BitsStored = 12
    instance.HighBit = 11
    instance.PixelRepresentation = 0
    return instance
