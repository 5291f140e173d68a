"""Whether the disk has room for what comes."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, kw_only=True)
class DiskRoom:
    """What is to stay free on the file system of ``folder``, so that what runs on this host can go on."""

    folder: Path
    reserve_bytes: int = 0
    watermark_percent: float = 100.0

    def is_left(self) -> bool:
        """Tell whether more may be taken at this moment. A disk that cannot be asked is left to say so itself."""
        try:
            status = os.statvfs(self.folder)
        except OSError:
            return True
        return has_room(
            free_bytes=status.f_bavail * status.f_frsize,
            total_bytes=status.f_blocks * status.f_frsize,
            reserve_bytes=self.reserve_bytes,
            watermark_percent=self.watermark_percent,
        )


def has_room(*, free_bytes: int, total_bytes: int, reserve_bytes: int, watermark_percent: float) -> bool:
    """Tell whether more may be taken: ``reserve_bytes`` stay free, and at most ``watermark_percent`` are used."""
    return free_bytes > reserve_bytes and (total_bytes - free_bytes) * 100 <= watermark_percent * total_bytes
