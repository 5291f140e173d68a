"""A STOW-RS client that sends what it is told, well-formed or not."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import httpx
from pydicom.dataset import Dataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian

from dicom_gateway.file_meta import file_meta
from tests.fakes.instances import encoded

BOUNDARY = "a-boundary"
TOKEN = "a-token-for-tests"
TYPE = f'multipart/related; type="application/dicom"; boundary={BOUNDARY}'


def dicom_file(
    dataset: Dataset, *, transfer_syntax_uid: str = ExplicitVRLittleEndian, sop_instance_uid: str | None = None
) -> bytes:
    """Return an instance as a file, by another writer than ours. The UID is that of its meta information."""
    head = file_meta(
        sop_class_uid=CTImageStorage,
        sop_instance_uid=sop_instance_uid or dataset.SOPInstanceUID,
        transfer_syntax_uid=transfer_syntax_uid,
    )
    return b"#!/bin/sh".ljust(128, b"\n") + head[128:] + encoded(dataset, transfer_syntax_uid=transfer_syntax_uid)


def body(files: Iterable[bytes], *, part_type: str = "application/dicom", is_closed: bool = True) -> bytes:
    """Return a multipart body."""
    parts = [f"--{BOUNDARY}\r\nContent-Type: {part_type}\r\n\r\n".encode() + file + b"\r\n" for file in files]
    return b"".join(parts) + (f"--{BOUNDARY}--\r\n".encode() if is_closed else b"")


def post(
    port: int,
    content: bytes | Iterator[bytes],
    *,
    path: str = "/studies",
    authorization: str | None = f"Bearer {TOKEN}",
    **headers: str,
) -> httpx.Response:
    """Send a Store request."""
    given = {"Content-Type": TYPE, **{name.replace("_", "-"): value for name, value in headers.items()}}
    if authorization is not None:
        given["Authorization"] = authorization
    return httpx.post(f"http://127.0.0.1:{port}{path}", content=content, headers=given, timeout=60)
