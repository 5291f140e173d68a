"""What carries runs is killed at random while they are under way, the Docker engine among it; all complete, once.

``ENGINE_KILL_ROUNDS`` and ``ENGINE_KILL_SEED`` make it longer, or another one: by even seeds the engine's socket is
there while the engine is not, as on hosts with systemd. ``ENGINE_KILL_RUNS`` are in flight at a time. What is not as it
should be is gathered, so that a long campaign tells of all of it at its end.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import random
import re
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

import docker
import httpx
import pytest
import requests

from deployments.up import Host
from flows_engine.handoff.site_settings import load_site_settings
from tests.acceptance.prefect_api import FINAL, eventually
from tests.acceptance.site import Site, processes_with, site_environment
from tests.factories import leaked_canaries, model_keys
from tests.local_engine import LocalEngine, local_engine
from tests.services import wait_until

ROUNDS = int(os.environ.get("ENGINE_KILL_ROUNDS", "2"))
SEED = int(os.environ.get("ENGINE_KILL_SEED", "1"))
RUNS = int(os.environ.get("ENGINE_KILL_RUNS", "4"))
pytestmark = [
    *(pytest.mark.docker, pytest.mark.dockerd, pytest.mark.dcmtk, pytest.mark.prefect),
    pytest.mark.timeout(ROUNDS * 600),
]
# So that a large round has all kinds.
STRIKES = max(3, RUNS * 2 // 5)
FILES = 4
ROUND_SECONDS = 600.0
LONGEST_ABSENCE_SECONDS = 4.0

# Once in a while a model takes as long as a strike may need to hit it. The first says that it was ended, as programs do
# that do not look for it; the second is polite, and what it says must not be taken for success.
SOMETHING = "sleep $((RANDOM % 3)).$((RANDOM % 9)) & wait $!; cp -r /input/. /output/"
MODELS = {"Tough": 2, "Forked": 3}

# What a person reads whose run failed for a reason that passes.
PASSES = re.compile(r"no Docker engine answers|the Docker engine .*(went away|was stopped|restarted|ceased)")


class Starts(threading.Thread):
    """Listens to an engine, over all of its lives: which containers it started, and when."""

    def __init__(self, engine: LocalEngine) -> None:
        super().__init__(daemon=True)
        self._engine = engine
        self._seen: dict[tuple[str, int], str] = {}
        self._last_seconds = 1
        self._is_over = threading.Event()

    def of(self, container: str) -> list[float]:
        """Return when each container of this name was started, in seconds since 1970."""
        return [nanoseconds / 1e9 for (_, nanoseconds), name in list(self._seen.items()) if name == container]

    def total(self) -> int:
        return len(self._seen)

    def run(self) -> None:
        while not self._is_over.wait(0.05):
            # The engine is away now and then.
            with (
                contextlib.suppress(docker.errors.DockerException, requests.exceptions.RequestException),
                self._engine.client() as client,
            ):
                filters = {"type": "container", "event": "start"}
                for event in client.events(since=self._last_seconds, filters=filters, decode=True):
                    self._last_seconds = event["time"]
                    self._seen[event["id"], event["timeNano"]] = event["Actor"]["Attributes"]["name"]

    def stop(self) -> None:
        self._is_over.set()


@dataclass
class Battle:
    """A site, the engine of its own, and what became of both."""

    site: Site
    engine: LocalEngine
    starts: Starts
    chance: random.Random = field(default_factory=lambda: random.Random(SEED))
    killed: Counter[str] = field(default_factory=Counter)
    ends: Counter[str] = field(default_factory=Counter)
    defects: list[str] = field(default_factory=list)

    def kill(self, kind: str, pids: list[int]) -> None:
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
                self.killed[kind] += 1

    def one_of(self, pids: list[int]) -> list[int]:
        return [self.chance.choice(pids)] if pids else []

    def flow_processes(self) -> list[int]:
        return self._named("flow-run")

    def zygotes(self) -> list[int]:
        return self._named("flow-run-zygote")

    def workers(self) -> list[int]:
        return self.site.processes("worker", "start", "cpu")

    def _named(self, name: str) -> list[int]:
        """Return the processes of the site that a zygote gave this name; their command line is that of the zygote."""
        return [pid for pid in processes_with(f"DATA_DIR={self.site.data_dir}") if _name_of(pid) == name]


def a_flow_process(battle: Battle) -> None:
    battle.kill("flow process", battle.one_of(battle.flow_processes()))


def the_zygote(battle: Battle) -> None:
    battle.kill("zygote", _once_back(battle.zygotes))


def the_worker(battle: Battle) -> None:
    battle.kill("worker", _once_back(battle.workers))


def the_engine(battle: Battle) -> None:
    battle.engine.kill()
    battle.killed["engine"] += 1
    _back_after_a_while(battle)


def the_engine_politely(battle: Battle) -> None:
    battle.engine.stop()
    battle.killed["engine, politely"] += 1
    _back_after_a_while(battle)


def the_worker_and_the_engine(battle: Battle) -> None:
    battle.kill("worker", _once_back(battle.workers))
    battle.engine.kill()
    battle.killed["engine"] += 1
    _back_after_a_while(battle)


def a_flow_process_and_the_engine(battle: Battle) -> None:
    a_flow_process(battle)
    battle.engine.kill()
    battle.killed["engine"] += 1
    _back_after_a_while(battle)


def everything_at_once(battle: Battle) -> None:
    """Do what a power cut does, as far as runs are concerned."""
    zygotes, flows = _once_back(battle.zygotes), battle.flow_processes()
    battle.kill("worker", battle.workers())
    battle.kill("zygote", zygotes)
    battle.kill("flow process", flows)
    battle.engine.kill()
    battle.killed["engine"] += 1
    _back_after_a_while(battle)


def _once_back(look: Callable[[], list[int]]) -> list[int]:
    """Return who is to be killed, once they have come back from the strike before."""
    with contextlib.suppress(TimeoutError):
        wait_until(lambda: bool(look()), seconds=20, what="there is somebody to be killed", every_seconds=0.1)
    return look()


def _back_after_a_while(battle: Battle) -> None:
    time.sleep(battle.chance.uniform(0, LONGEST_ABSENCE_SECONDS))
    battle.engine.start()


STRIKE_KINDS: tuple[Callable[[Battle], None], ...] = (
    the_engine_politely,
    a_flow_process,
    the_engine,
    the_worker,
    the_worker_and_the_engine,
    the_zygote,
    a_flow_process_and_the_engine,
    everything_at_once,
)


@pytest.fixture(scope="module")
def battle(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Battle]:
    root = tmp_path_factory.mktemp("battle")
    with local_engine("busybox", is_socket_held=SEED % 2 == 0) as engine:
        environment = site_environment(root, DOCKER_HOST=engine.url, CPU_SLOTS=str(RUNS))
        starts = Starts(engine)
        starts.start()
        site = Site(environment, root=root)
        with Host(load_site_settings(environment), environ=environment):
            yield Battle(site=site, engine=engine, starts=starts)
        starts.stop()
        assert leaked_canaries(site.service_logs()) == []


def test_every_run_completes_and_no_model_that_finished_runs_again(battle: Battle) -> None:
    site = battle.site
    loud, polite = (f"trap 'exit {code}' TERM; {SOMETHING}" for code in (143, 0))
    site.define("Tough", loud, polite, concurrency_limit=RUNS)
    branches = [_model(command, reads={"src": "/input"}, writes=f"b{n}") for n, command in enumerate((loud, polite))]
    join = _model("cp -r /b0/. /output; cp -r /b1/. /output", reads={"b0": "/b0", "b1": "/b1"}, writes="dst")
    site.write_flow("Forked", models=[*branches, join], concurrency_limit=RUNS)
    site.api.await_deployments("Forked")
    strikes: list[Callable[[Battle], None]] = []
    struck = 0
    for number in range(1, ROUNDS + 1):
        began = time.monotonic()
        before = {run["id"] for run in site.api.runs()}
        site.send(*(site.study("Tough", "Forked") for _ in range(RUNS // 2)))
        expected = RUNS // 2 * 2
        runs = [
            run["id"]
            for run in eventually(
                lambda before=before: [run for run in site.api.runs() if run["id"] not in before],
                lambda found, expected=expected: len(found) >= expected,
                what="all runs are there",
            )
        ]
        for _ in range(STRIKES):
            # On a slow machine runs begin late; what strikes before that hits nothing.
            with contextlib.suppress(TimeoutError):
                wait_until(lambda: bool(_containers(site)), seconds=20, what="a model runs", every_seconds=0.1)
            time.sleep(battle.chance.uniform(0, 1.5))
            # All kinds before one comes again, so that a short campaign has most of them.
            strikes = strikes or battle.chance.sample(STRIKE_KINDS, k=len(STRIKE_KINDS))
            strike = strikes.pop()
            print(f"round {number}, {time.monotonic() - began:.0f} s: {strike.__name__}", flush=True)
            strike(battle)
            struck += 1
        _await_completion(battle, runs, number)
        _look_at(battle, number)
        for run_id in runs:
            _look_at_run(battle, run_id)
        print(
            f"round {number}: {len(runs)} runs in {time.monotonic() - began:.0f} s; killed {dict(battle.killed)};"
            f" ended {dict(battle.ends)}; {battle.starts.total()} containers; {len(battle.defects)} defects",
            flush=True,
        )
    assert battle.defects == []
    assert sum(battle.killed.values()) >= struck


def _model(command: str, *, reads: dict[str, str], writes: str) -> dict[str, Any]:
    return model_keys(
        docker_kwargs={"command": ["sh", "-c", command]}, input_mounts=reads, output_mounts={writes: "/output"}
    )


def _await_completion(battle: Battle, runs: list[str], number: int) -> None:
    """Have those go on that ended in another way, as a person does; what could not pass by itself is a defect."""
    waiting = set(runs)
    deadline = time.monotonic() + ROUND_SECONDS
    while waiting and time.monotonic() < deadline:
        for run_id in sorted(waiting):
            state = battle.site.api.run(run_id)["state"]
            if state["type"] not in FINAL:
                continue
            message = " ".join(str(state["message"]).split())
            battle.ends[state["name"] if state["type"] == "COMPLETED" else f"{state['name']}: {_shape(message)}"] += 1
            if state["type"] == "COMPLETED":
                waiting.discard(run_id)
                continue
            if state["type"] == "CANCELLED" or (state["type"] == "FAILED" and not PASSES.search(message)):
                _defect(battle, f"round {number}: run {run_id} is {state['name']}: {message}")
            with contextlib.suppress(httpx.HTTPError):
                battle.site.api.retry(run_id)
        time.sleep(0.5)
    for run_id in waiting:
        state = battle.site.api.run(run_id)["state"]
        _defect(battle, f"round {number}: run {run_id} is still {state['name']}: {state['message']}")


def _look_at(battle: Battle, number: int) -> None:
    """See whether anything is left of a round."""
    site = battle.site
    for what, look in (
        ("containers", lambda: _containers(site)),
        ("volumes", lambda: [one.name for one in site.engine.volumes.list()]),
        ("processes of models", lambda: _model_processes(battle.engine)),
        ("locks", lambda: [str(path) for path in _locks(site) if _is_held(path)]),
        ("slots of a limit", lambda: _active_slots(site)),
        ("unfinished folders", lambda: [str(path) for path in (site.data_dir / "runs").rglob("*.unfinished")]),
    ):
        try:
            eventually(look, lambda found: not found, what=what)
        except TimeoutError as error:
            _defect(battle, f"round {number}: left: {error}")


def _look_at_run(battle: Battle, run_id: str) -> None:
    site, tasks = battle.site, battle.site.api.task_runs(run_id)
    flow = str(site.api.run(run_id)["name"]).split(" ")[0].split("/")[0]
    done = [task for task in tasks if task["state"]["name"] == "Completed"]
    names = Counter(task["name"] for task in done)
    if max(names.values(), default=0) > 1:
        _defect(battle, f"run {run_id}: a model was completed twice: {names}")
    for task in done:
        if match := re.match(r"model (\d+)", task["name"]):
            ended = datetime.fromisoformat(task["end_time"].replace("Z", "+00:00")).timestamp()
            late = [start for start in battle.starts.of(f"dicomflow-{run_id}-{match[1]}") if start > ended]
            if late:
                _defect(battle, f"run {run_id}: {task['name']} was started again after it had completed ({flow})")
    outputs = [folder for folder in (site.data_dir / "runs" / run_id).glob("model-*/") if (folder / "output").is_dir()]
    for output in (folder / "output" for folder in outputs):
        if len(files := [path for path in output.rglob("*") if path.is_file()]) != FILES:
            _defect(battle, f"run {run_id}: {output.parent.name} left {len(files)} files")
    if not outputs:
        _defect(battle, f"run {run_id} has no output")


def _defect(battle: Battle, sentence: str) -> None:
    print(f"DEFECT {sentence}", flush=True)
    battle.defects.append(sentence)


def _shape(message: str) -> str:
    """Return a message without what differs from run to run."""
    message = re.sub(r"unix://\S+?(?=:|\s|$)", "unix://…", message)
    message = re.sub(r"[0-9a-f]{64}|[0-9a-f]{8}-[0-9a-f-]{27}", "…", message)
    return re.sub(r"model \d", "model n", message)[:150]


def _containers(site: Site) -> list[str]:
    return [f"{one.name} {one.status}" for one in site.engine.containers.list(all=True, ignore_removed=True)]


def _model_processes(engine: LocalEngine) -> list[int]:
    """Return the processes of containers of the engine, whether it knows of these or not.

    A kill in the moment of a start leaves containerd's own there for ever, and what was to become a container (``runc
    init``). They do nothing; a model would.
    """
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            if b"containerd-shim" in (line := path.read_bytes()) and str(engine.folder).encode() in line:
                children = Path(f"/proc/{path.parent.name}/task/{path.parent.name}/children").read_text().split()
                found += [
                    int(pid) for pid in children if Path(f"/proc/{pid}/cmdline").read_bytes()[:10] != b"runc\0init\0"
                ]
    return found


def _locks(site: Site) -> list[Path]:
    locks = [path for path in (site.data_dir / "locks").rglob("*") if path.is_file()]
    return [*locks, *(site.data_dir / "runs").glob("*/claim"), *(site.data_dir / "runs").glob("*/*.lock")]


def _is_held(path: Path) -> bool:
    with contextlib.suppress(FileNotFoundError), path.open("rb") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False


def _active_slots(site: Site) -> dict[str, int]:
    return {name: slots for name in MODELS if (slots := _slots_of(site, name))}


def _slots_of(site: Site, name: str) -> int:
    limit = site.api.deployment(name)["global_concurrency_limit"]
    return int(limit["active_slots"])


def _name_of(pid: int) -> str:
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/comm").read_text().strip()
    return ""
