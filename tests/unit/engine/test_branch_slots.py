from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import pytest

from flows_engine.branch_slots import branch_slot
from flows_engine.errors import RunHaltedError
from tests.services import ROOT

HOLDS = (
    "import sys, time; from pathlib import Path; from flows_engine.branch_slots import branch_slot\n"
    "with branch_slot(Path(sys.argv[1]), shared=Path(sys.argv[2]), shared_count=1):\n"
    "    print('held', flush=True); time.sleep(60)\n"
)


def test_a_run_has_one_of_its_own_and_takes_those_that_are_shared(tmp_path: Path) -> None:
    def slot(run: str) -> Path:
        return tmp_path / f"{run}.lock"

    with ExitStack() as held:
        for run in ("a", "a", "a", "b"):
            held.enter_context(branch_slot(slot(run), shared=tmp_path / "shared", shared_count=2))
        for run in ("a", "b"):
            with (
                pytest.raises(RunHaltedError),
                branch_slot(slot(run), shared=tmp_path / "shared", shared_count=2, is_halted=lambda: True),
            ):
                pass
        with branch_slot(slot("c"), shared=tmp_path / "shared", shared_count=2):
            pass


def test_never_more_than_the_slots_at_a_time_and_all_get_their_turn(tmp_path: Path) -> None:
    now, most, lock = 0, 0, threading.Lock()

    def work(_: int) -> None:
        nonlocal now, most
        with branch_slot(tmp_path / "own", shared=tmp_path / "shared", shared_count=2):
            with lock:
                now += 1
                most = max(most, now)
            time.sleep(0.05)
            with lock:
                now -= 1

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(work, range(8)))
    assert (now, most) == (0, 3)


def test_who_is_killed_leaves_no_slot_taken(tmp_path: Path) -> None:
    own, shared = tmp_path / "own", tmp_path / "shared"
    with ExitStack() as stack:
        holders = [
            stack.enter_context(
                subprocess.Popen(
                    [sys.executable, "-c", HOLDS, str(own), str(shared)],
                    stdout=subprocess.PIPE,
                    text=True,
                    env={**os.environ, "PYTHONPATH": str(ROOT)},
                )
            )
            for _ in range(2)
        ]
        for holder in holders:
            assert holder.stdout is not None
            assert holder.stdout.readline() == "held\n"
        with pytest.raises(RunHaltedError), branch_slot(own, shared=shared, shared_count=1, is_halted=lambda: True):
            pass
        holders[0].send_signal(signal.SIGKILL)
        holders[0].wait()
        with branch_slot(own, shared=shared, shared_count=1):
            pass
        holders[1].kill()
