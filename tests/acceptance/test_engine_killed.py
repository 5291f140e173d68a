"""Processes of the engine are killed at random while runs are under way; every run completes once all the same.

``ENGINE_KILL_ROUNDS`` and ``ENGINE_KILL_SEED`` make it longer, or another one.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import random
import signal
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.acceptance.prefect_api import FINAL, eventually
from tests.acceptance.site import Site

pytestmark = [pytest.mark.docker, pytest.mark.dcmtk, pytest.mark.prefect]

ROUNDS = int(os.environ.get("ENGINE_KILL_ROUNDS", "2"))
SEED = int(os.environ.get("ENGINE_KILL_SEED", "1"))
RUNS = 4
KILLS = 3
MODELS = 3
# Once in a while a model takes as long as a kill may need to hit it.
SOMETHING = "sleep $(expr $(date +%N) % 3).$(expr $(date +%N) % 9); cp -r /input/. /output/"


def flow_process(site: Site, runs: list[str]) -> list[int]:
    pids = [site.api.run(run_id)["infrastructure_pid"] for run_id in runs]
    return [int(pid) for pid in pids if pid and Path(f"/proc/{pid}").exists()]


def zygote(site: Site, _: list[str]) -> list[int]:
    return site.processes("zygote")


def worker(site: Site, _: list[str]) -> list[int]:
    return site.processes("worker", "start", "cpu")


VICTIMS: tuple[Callable[[Site, list[str]], list[int]], ...] = (flow_process, flow_process, zygote, worker)


def test_every_run_completes_and_no_model_that_finished_runs_again(site: Site) -> None:
    chance = random.Random(SEED)
    site.define("Tough", *[SOMETHING] * MODELS)
    killed: Counter[str] = Counter()
    for number in range(ROUNDS):
        site.send(*(site.study("Tough") for _ in range(RUNS)))
        runs = [run["id"] for run in site.api.await_runs("Tough", RUNS * (number + 1))]
        for _ in range(KILLS):
            time.sleep(chance.uniform(0.2, 2.5))
            victim = chance.choice(VICTIMS)
            if pids := victim(site, runs):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(chance.choice(pids), signal.SIGKILL)
                killed[victim.__name__] += 1
        eventually(lambda runs=runs: _completed(site, runs), all, what="all runs are completed")
    print(f"killed: {dict(killed)}")
    assert killed
    for run in site.api.runs("Tough"):
        done = Counter(task["name"] for task in site.api.task_runs(run["id"]) if task["state"]["name"] == "Completed")
        assert max(done.values(), default=1) == 1, done
        output = site.data_dir / "runs" / run["id"] / f"model-{MODELS}" / "output"
        assert len(list(output.iterdir())) == 2
    assert len(site.api.runs("Tough")) == RUNS * ROUNDS
    for run in site.api.runs("Tough"):
        eventually(lambda run=run: site.containers(run["id"]), lambda found: not found, what="no container is left")
    assert [path for path in (site.data_dir / "locks").rglob("*.lock") if _is_held(path)] == []
    assert list((site.data_dir / "runs").rglob("*.unfinished")) == []


def _completed(site: Site, runs: list[str]) -> list[bool]:
    """Tell of each run whether it has completed; have those go on that were killed."""
    completed = []
    for run_id in runs:
        state = site.api.run(run_id)["state"]
        assert state["type"] != "FAILED", state
        completed.append(state["type"] == "COMPLETED")
        if state["type"] in FINAL and not completed[-1]:
            site.api.retry(run_id)
    return completed


def _is_held(path: Path) -> bool:
    with path.open("rb") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False
