"""How much of a disk is kept free, so that the host lives on whatever a model writes."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Final

SETTING: Final = "DISK_RESERVE_BYTES"

_MIB: Final = 2**20
# Disks run out of files, too. Those of a small disk are fewer.
_FEWEST_FILES: Final = 100_000
_FEWEST_FILES_SHARE: Final = 0.01


@dataclass(frozen=True, kw_only=True)
class DiskReserve:
    """What is to stay free of the file system of ``folder``; 0 is nothing."""

    folder: Path
    reserve_bytes: int

    def shortage(self) -> str:
        """Return, in words, how little is free; empty where that is enough, or nobody can tell."""
        if not self.reserve_bytes:
            return ""
        try:
            found = os.statvfs(self.folder)
        except OSError:
            return ""
        free_bytes = found.f_bavail * found.f_frsize
        if free_bytes < self.reserve_bytes:
            return (
                f"only {free_bytes / _MIB:.1f} MiB are free on the disk of {self.folder}, less than {SETTING}"
                f" ({self.reserve_bytes / _MIB:.1f} MiB)"
            )
        # Some file systems have no such limit, and say 0.
        if found.f_favail < min(_FEWEST_FILES, found.f_files * _FEWEST_FILES_SHARE):
            return f"the disk of {self.folder} has room for {found.f_favail} more files only"
        return ""
