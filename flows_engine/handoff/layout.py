"""Where an instance lies below the input folder of its study. Pure.

The folder levels are values that a stranger wrote into a DICOM header; what comes out is safe on every file system,
never leaves the folder, and keeps distinct values distinct.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Sequence
from pathlib import PurePosixPath
from typing import Final

from pydicom.datadict import tag_for_keyword

from flows_engine.handoff.header import Header

UNKNOWN: Final = "unknown"
LONGEST_LEVEL: Final = 64
_DIGEST_DIGITS: Final = 10
_UNSAFE: Final = re.compile(r"[^A-Za-z0-9._-]")
_LOOKS_ALTERED: Final = re.compile(rf"-[0-9a-f]{{{_DIGEST_DIGITS}}}\Z")


class Layout:
    """The levels of ``TAR_SUBDIR`` or ``tar_subdir``. Raises ``ValueError`` for a keyword that DICOM does not know."""

    def __init__(self, keywords: Sequence[str]) -> None:
        self._tags: list[int] = []
        for keyword in keywords:
            tag = tag_for_keyword(keyword)
            if tag is None:
                raise ValueError(f"{keyword!r} is not a DICOM keyword; use one such as SeriesInstanceUID")
            self._tags.append(tag)

    @property
    def is_flat(self) -> bool:
        """Whether all instances lie in one folder."""
        return not self._tags

    def place(self, header: Header, *, sop_instance_uid: str, copy: int = 1) -> PurePosixPath:
        """Return the path of an instance below the input folder. ``copy`` counts what shares its UID, from 1."""
        suffix = "" if copy == 1 else f"_{copy}"
        return self.folder(header.values) / f"{sop_instance_uid}{suffix}.dcm"

    def folder(self, values: Callable[[int], tuple[str, ...] | None]) -> PurePosixPath:
        """Return the folder of an instance, of which ``values`` tells what stands at a tag."""
        return PurePosixPath(*(safe_level("\\".join(values(tag) or ())) for tag in self._tags))


def safe_level(value: str) -> str:
    """Return a folder name for ``value``: letters, digits, ``.``, ``_`` and ``-``, not hidden, at most 64 characters.

    A value that had to be altered ends in a digest of the original, so that two different values never share a folder.
    """
    if not value:
        return UNKNOWN
    safe = _UNSAFE.sub("_", value)
    if safe.startswith("."):
        safe = "_" + safe[1:]
    # A value that by itself looks like our own doing gets a digest as well, or it could meet an altered one.
    if safe == value and len(safe) <= LONGEST_LEVEL and safe != UNKNOWN and not _LOOKS_ALTERED.search(safe):
        return safe
    digest = hashlib.sha256(value.encode("utf-8", "surrogatepass")).hexdigest()[:_DIGEST_DIGITS]
    return f"{safe[: LONGEST_LEVEL - _DIGEST_DIGITS - 1]}-{digest}"
