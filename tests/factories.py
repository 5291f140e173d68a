"""Made studies and made flow definitions.

Every patient made here is a canary: its name, id, birth date, accession number and descriptions occur nowhere else, so
a test that finds one of ``CANARIES`` in a log, an error text or a parameter has found a leak.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from pydicom.dataset import Dataset, FileDataset, FileMetaDataset
from pydicom.uid import (
    CTImageStorage,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    RLELossless,
    generate_uid,
)

from flows_engine.definition.schema import FlowDefinition
from flows_engine.handoff.study_store import Fingerprint, StudyRecord

CANARY_NAME = "CANARYSURNAME^QUILLON"
CANARY_ID = "CANARYID-7315-X"
CANARY_BIRTH_DATE = "19010203"
CANARY_ACCESSION = "CANARYACC-8842"
CANARY_STUDY_DESCRIPTION = "CANARYSTUDY abdomen of the mayor"
CANARY_SERIES_DESCRIPTION = "CANARYSERIES thin slices"
CANARIES = (
    "CANARYSURNAME",
    "QUILLON",
    CANARY_ID,
    CANARY_BIRTH_DATE,
    CANARY_ACCESSION,
    "CANARYSTUDY",
    "CANARYSERIES",
)


def leaked_canaries(text: str) -> list[str]:
    """Return which canaries stand in ``text``, in whatever case."""
    folded = text.casefold()
    return [canary for canary in CANARIES if canary.casefold() in folded]


def ct_slice(*, rows: int = 16, columns: int = 16, instance_number: int = 1, **values: Any) -> FileDataset:
    """Return one CT instance of 16 bits a pixel, ready for ``save_as``.

    ``values`` replace elements by keyword; None leaves the element out. 512 by 512 pixels make 0.5 MB. The pixels of
    two instance numbers differ.
    """
    sop_instance_uid = values.pop("SOPInstanceUID", None) or generate_uid()
    dataset = Dataset()
    elements: dict[str, Any] = {
        "SpecificCharacterSet": "ISO_IR 100",
        "ImageType": ["ORIGINAL", "PRIMARY", "AXIAL"],
        "SOPClassUID": CTImageStorage,
        "SOPInstanceUID": sop_instance_uid,
        "StudyDate": "20240102",
        "StudyTime": "101112",
        "AccessionNumber": CANARY_ACCESSION,
        "Modality": "CT",
        "Manufacturer": "DicomFlow tests",
        "StudyDescription": CANARY_STUDY_DESCRIPTION,
        "SeriesDescription": CANARY_SERIES_DESCRIPTION,
        "PatientName": CANARY_NAME,
        "PatientID": CANARY_ID,
        "PatientBirthDate": CANARY_BIRTH_DATE,
        "PatientSex": "O",
        "SliceThickness": "2",
        "StudyInstanceUID": generate_uid(),
        "SeriesInstanceUID": generate_uid(),
        "SeriesNumber": 1,
        "InstanceNumber": instance_number,
        "ImagePositionPatient": [0, 0, 2 * instance_number],
        "ImageOrientationPatient": [1, 0, 0, 0, 1, 0],
        "FrameOfReferenceUID": generate_uid(),
        "SamplesPerPixel": 1,
        "PhotometricInterpretation": "MONOCHROME2",
        "Rows": rows,
        "Columns": columns,
        "PixelSpacing": [0.8, 0.8],
        "BitsAllocated": 16,
        "BitsStored": 12,
        "HighBit": 11,
        "PixelRepresentation": 0,
        "RescaleIntercept": "-1024",
        "RescaleSlope": "1",
    }
    for keyword, value in {**elements, **values}.items():
        if value is not None:
            setattr(dataset, keyword, value)
    dataset.add_new("PixelData", "OW", _pixels(rows=rows, columns=columns, seed=instance_number))
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = dataset.get("SOPClassUID", CTImageStorage)
    meta.MediaStorageSOPInstanceUID = sop_instance_uid
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    return FileDataset("", dataset, file_meta=meta, preamble=b"\0" * 128)


def ct_series(count: int, *, rows: int = 16, columns: int = 16, **values: Any) -> Iterator[FileDataset]:
    """Yield ``count`` slices of one series of one study; ``values`` as in ``ct_slice``."""
    shared = {
        "StudyInstanceUID": generate_uid(),
        "SeriesInstanceUID": generate_uid(),
        "FrameOfReferenceUID": generate_uid(),
        **values,
    }
    for number in range(1, count + 1):
        yield ct_slice(rows=rows, columns=columns, instance_number=number, **shared)


def ct_study(series_sizes: Iterable[int], *, rows: int = 16, columns: int = 16, **values: Any) -> Iterator[FileDataset]:
    """Yield the slices of one study with one series for each of ``series_sizes``; ``values`` as in ``ct_slice``."""
    shared = {"StudyInstanceUID": generate_uid(), **values}
    for number, size in enumerate(series_sizes, start=1):
        yield from ct_series(size, rows=rows, columns=columns, **{"SeriesNumber": number, **shared})


def as_implicit(instance: FileDataset) -> FileDataset:
    """Return ``instance``, to be written in implicit VR little endian."""
    instance.file_meta.TransferSyntaxUID = ImplicitVRLittleEndian
    return instance


def as_rle(instance: FileDataset) -> FileDataset:
    """Return ``instance`` with its pixels compressed losslessly (RLE, PS3.5 annex G)."""
    instance.compress(RLELossless, generate_instance_uid=False)
    return instance


def write_instances(instances: Iterable[FileDataset], folder: Path) -> list[Path]:
    """Write each instance as a DICOM file (PS3.10) into ``folder``; return the files in the order given."""
    folder.mkdir(parents=True, exist_ok=True)
    files = []
    for number, instance in enumerate(instances):
        path = folder / f"{number:05d}.dcm"
        instance.save_as(path, enforce_file_format=True)
        files.append(path)
    return files


def flow_keys(**keys: Any) -> dict[str, Any]:
    """Return the smallest flow as the keys of its YAML: every CT, one ``busybox`` model. ``keys`` add and replace."""
    return {"triggers": [{"Modality": "CT"}], "models": [model_keys()], "destinations": [], **keys}


def model_keys(*, image: str = "busybox", command: str | None = None, **keys: Any) -> dict[str, Any]:
    """Return one model as the keys of its YAML. Images are used as they are in the engine, never pulled."""
    docker_kwargs = {"image": image} if command is None else {"image": image, "command": command}
    extra = keys.pop("docker_kwargs", {})
    return {"docker_kwargs": {**docker_kwargs, **extra}, "pull_before_exec": False, **keys}


def copying_model_keys(**keys: Any) -> dict[str, Any]:
    """Return a model that hands on what it is given, unchanged."""
    return model_keys(command="cp -r /input/. /output/", **keys)


def flow_yaml(**keys: Any) -> str:
    """Return the text of a definition file; ``keys`` as in ``flow_keys``."""
    return yaml.safe_dump(flow_keys(**keys), sort_keys=False, allow_unicode=True)


def run_parameters(definition: FlowDefinition | None = None, **values: Any) -> dict[str, Any]:
    """Return what a run is told of a study that is nowhere; without ``definition``, it has its deployment's."""
    told: dict[str, Any] = {
        "study_id": "0193e4c2-7a54-7cc3-98c4-dc0c0c070001",
        "study_uri": "file:///studies/1",
        "sender": {"ae_title": "PACS", "host": "10.0.0.1", "port": 104},
        "received_at": "2024-05-06T07:08:09Z",
    }
    if definition is not None:
        told["definition"] = definition.model_dump(mode="json", exclude_none=True)
    return told | values


def study_record(fingerprint: Fingerprint, **values: Any) -> StudyRecord:
    """Return the record of a study that is nowhere. ``values`` add and replace."""
    told = run_parameters()
    known: dict[str, Any] = {
        "study_id": told["study_id"],
        "sender": told["sender"],
        "received_at": told["received_at"],
        "called_ae_title": "STORESCP",
        "complete": True,
        "instance_count": fingerprint.instance_count,
        "duplicate_count": 0,
        "conflict_count": 0,
        "size_bytes": 999,
        "fingerprint": fingerprint,
    }
    return StudyRecord.model_validate(known | values)


def _pixels(*, rows: int, columns: int, seed: int) -> bytes:
    across = np.arange(columns, dtype="<u2")
    down = np.arange(rows, dtype="<u2")[:, np.newaxis]
    pixels: bytes = ((across * 3 + down * 5 + seed * 7) & 0x0FFF).astype("<u2").tobytes()
    return pixels
