from __future__ import annotations

from pathlib import Path

import pytest

from deployments.errors import StartupError
from deployments.host_lock import host_lock


def test_a_data_dir_is_held_once_and_can_be_held_again(tmp_path: Path):
    with host_lock(tmp_path), pytest.raises(StartupError, match=f"another `dicomflow up` is using {tmp_path}"):
        host_lock(tmp_path).__enter__()

    with host_lock(tmp_path):
        assert (tmp_path / "up.lock").exists()
