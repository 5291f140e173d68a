"""A disk of its own that is soon full."""

from __future__ import annotations

import contextlib
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import pytest

FileSystem = Literal["tmpfs", "ext4"]


@contextlib.contextmanager
def small_disk(folder: Path, *, size_mib: int = 16, file_system: FileSystem = "tmpfs") -> Iterator[Path]:
    """Mount a disk at ``folder``, which is made. Skips the test where that cannot be done, and fails it in CI."""
    folder.mkdir()
    if file_system == "tmpfs":
        command = ["mount", "-t", "tmpfs", "-o", f"size={size_mib}m,nr_inodes=6000", "tmpfs", str(folder)]
        _run(command)
    else:
        image = folder.with_suffix(".image")
        with image.open("wb") as file:
            file.truncate(size_mib * 2**20)
        # No blocks for root alone: the test may be root, and a full disk is full for it, too.
        _run(["mkfs.ext4", "-q", "-m", "0", "-N", "6000", str(image)])
        _run(["mount", "-o", "loop", str(image), str(folder)])
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


def _run(command: list[str]) -> None:
    try:
        subprocess.run(command, capture_output=True, check=True)
    except (OSError, subprocess.CalledProcessError) as error:
        reason = f"a small disk cannot be mounted: {command[0]} failed ({error}); run this as root"
        if os.environ.get("CI"):
            pytest.fail(reason, pytrace=False)
        pytest.skip(reason)
