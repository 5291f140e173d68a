"""``dicomflow demo`` as a person starts it: status 0 only where every byte arrived."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.acceptance.site import processes_with, shell_models
from tests.factories import flow_yaml

pytestmark = [pytest.mark.docker, pytest.mark.dcmtk, pytest.mark.prefect]


def _demo(temporary: Path, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith("PREFECT_")}
    return subprocess.run(
        [sys.executable, "-m", "deployments.cli", "demo", *arguments],
        env={**kept, "TMPDIR": str(temporary), **environment},
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
    )


def test_everything_arrives_and_nothing_is_left(tmp_path: Path) -> None:
    done = _demo(tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.splitlines()[-1].startswith("delivered 63 of 63 instances")
    for said in ("Prefect UI http://127.0.0.1:", "matched", "queued", "model 2 (busybox) Completed", "run Completed"):
        assert said in done.stdout
    _assert_nothing_is_left(tmp_path)


def test_a_model_that_fails_is_no_success(tmp_path: Path) -> None:
    flow = tmp_path / "broken.yaml"
    flow.write_text(flow_yaml(name="Broken", models=shell_models("exit 3")))
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    done = _demo(temporary, "--flow", str(flow))
    assert done.returncode == 1
    assert "Failed: model 1 (busybox) exited with code 3: it printed nothing" in done.stdout
    assert done.stderr.splitlines()[-1].startswith("dicomflow: delivered 0 of 63 instances")
    _assert_nothing_is_left(temporary)


def test_without_a_receiver_it_says_what_to_install(tmp_path: Path) -> None:
    done = _demo(tmp_path, PATH=str(tmp_path))
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1] == (
        "dicomflow: DCMTK's storescu is not installed; on Debian or Ubuntu: apt-get install dcmtk"
    )
    assert done.stderr.count("\n") == 1


def _assert_nothing_is_left(temporary: Path) -> None:
    # Prefect's runner makes an empty folder in this one, wherever temporary files go, each time it starts.
    left = [path for path in temporary.rglob("*") if "runner_storage" not in path.parts or path.is_file()]
    assert left == []
    assert processes_with(f"TMPDIR={temporary}") == []
