from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from flows_engine.errors import GpuUnavailableError
from flows_engine.gpu_lease import lease


def test_two_leases_never_share_a_gpu_and_a_third_waits_in_vain(tmp_path: Path) -> None:
    with (
        lease(["0", "1"], folder=tmp_path, wait_seconds=0) as first,
        lease(["0", "1"], folder=tmp_path, wait_seconds=0) as second,
    ):
        assert {first, second} == {"0", "1"}
        with (
            pytest.raises(GpuUnavailableError, match="0, 1"),
            lease(["0", "1"], folder=tmp_path, wait_seconds=0.3),
        ):
            pass
    with lease(["0"], folder=tmp_path, wait_seconds=0) as again:
        assert again == "0"


def test_without_gpus_it_says_what_to_set(tmp_path: Path) -> None:
    with pytest.raises(GpuUnavailableError, match="GPUS"), lease([], folder=tmp_path, wait_seconds=0):
        pass


def test_an_id_is_not_a_path(tmp_path: Path) -> None:
    with lease(["../GPU-1/2"], folder=tmp_path / "locks", wait_seconds=0) as gpu:
        assert gpu == "../GPU-1/2"
    assert [path.parent for path in tmp_path.rglob("*.lock")] == [tmp_path / "locks"]


def test_a_killed_process_frees_its_gpu(tmp_path: Path) -> None:
    script = (
        "import sys, time; from pathlib import Path; from flows_engine.gpu_lease import lease\n"
        "with lease(['0'], folder=Path(sys.argv[1]), wait_seconds=0): print('held', flush=True); time.sleep(600)\n"
    )
    holder = subprocess.Popen([sys.executable, "-c", script, str(tmp_path)], stdout=subprocess.PIPE)
    try:
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"held\n"
        with pytest.raises(GpuUnavailableError), lease(["0"], folder=tmp_path, wait_seconds=0):
            pass
    finally:
        holder.kill()
        holder.wait()
    with lease(["0"], folder=tmp_path, wait_seconds=5) as gpu:
        assert gpu == "0"
