from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from flows_engine.handoff.run_claim import RunClaimedError, began_here, claim, is_claimed
from tests.services import ROOT

HOLDS_FOR_EVER = """
import sys
from pathlib import Path
from flows_engine.handoff.run_claim import claim

with claim(Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def holder(tmp_path: Path):
    """Start a process that claims the run ``tmp_path / "run"`` and holds it until its input ends."""
    with subprocess.Popen(
        [sys.executable, "-c", HOLDS_FOR_EVER, str(tmp_path / "run")],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"held\n"
        yield process
        process.kill()


def test_a_run_that_never_began_is_free(tmp_path: Path):
    assert not began_here(tmp_path / "run")
    assert not is_claimed(tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_run_is_claimed_while_it_is_executed_and_free_afterwards(tmp_path: Path):
    run = tmp_path / "runs" / "one"

    with claim(run):
        assert began_here(run)
        assert is_claimed(run)

    assert began_here(run)
    assert not is_claimed(run)


def test_a_run_that_failed_is_free(tmp_path: Path):
    with pytest.raises(ZeroDivisionError), claim(tmp_path / "run"):
        _ = 1 / 0

    assert not is_claimed(tmp_path / "run")


def test_a_process_that_was_killed_holds_nothing(tmp_path: Path, holder: subprocess.Popen[bytes]):
    assert is_claimed(tmp_path / "run")

    holder.kill()
    holder.wait()

    assert not is_claimed(tmp_path / "run")
    with claim(tmp_path / "run"):
        assert is_claimed(tmp_path / "run")


def test_two_processes_cannot_execute_one_run(tmp_path: Path, holder: subprocess.Popen[bytes]):
    with pytest.raises(RunClaimedError, match="another process of this host"), claim(tmp_path / "run"):
        pytest.fail("claimed twice")

    assert holder.poll() is None
    assert is_claimed(tmp_path / "run")


def test_looking_does_not_take_the_claim_away_from_others(tmp_path: Path):
    run = tmp_path / "run"
    with claim(run):
        pass

    assert [is_claimed(run) for _ in range(3)] == [False, False, False]
    with claim(run):
        assert [is_claimed(run) for _ in range(3)] == [True, True, True]


def test_a_run_folder_is_closed_to_other_accounts(tmp_path: Path):
    with claim(tmp_path / "run"):
        assert (tmp_path / "run").stat().st_mode & 0o777 == 0o700
