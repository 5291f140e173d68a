"""The headers of the instances below a folder, as they lie in the store, or are about to."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from flows_engine.handoff.header import Header, UnreadableError
from flows_engine.handoff.header_file import read_file_header_at


def headers_below(folder: Path) -> Iterator[tuple[str, Header]]:
    """Yield the SOP Instance UID and the header of each instance; none of those that cannot be read, or are gone."""
    for path in sorted(folder.rglob("*.dcm")):
        try:
            yield sop_instance_uid(path.name), read_file_header_at(path)
        except (UnreadableError, OSError):
            continue


def sop_instance_uid(name: str) -> str:
    """Return the SOP Instance UID that the name of a file begins with."""
    return name.removesuffix(".dcm").partition("_")[0]
