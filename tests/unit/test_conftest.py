from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.services import ROOT


@pytest.mark.parametrize(
    ("marker", "environment", "reason"),
    [
        ("docker", {"DOCKER_HOST": "unix:///nowhere/docker.sock"}, "no Docker engine answers"),
        ("dcmtk", {"PATH": "/nowhere"}, "DCMTK is not installed"),
        ("browser", {"PATH": "/nowhere"}, "no Chromium is installed"),
    ],
)
@pytest.mark.parametrize(("ci", "outcome"), [("true", "1 error"), ("", "1 skipped")])
def test_a_missing_tool_fails_in_ci_and_skips_elsewhere(
    tmp_path: Path, marker: str, environment: dict[str, str], reason: str, ci: str, outcome: str
):
    test = tmp_path / "test_one.py"
    test.write_text(f"import pytest\n\n@pytest.mark.{marker}\ndef test_it(): pass\n")
    command = [sys.executable, "-m", "pytest", "-c", "pyproject.toml", "-p", "tests.conftest", "-p", "no:cacheprovider"]

    done = subprocess.run(
        [*command, str(test)],
        cwd=ROOT,
        env={**os.environ, **environment, "CI": ci},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )

    assert reason in done.stdout, done.stdout + done.stderr
    assert outcome in done.stdout.splitlines()[-1]
    assert done.returncode == (1 if ci else 0)
