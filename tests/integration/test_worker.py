"""``prefect worker start`` finds our worker, and a real Prefect server does not tell its runs from others."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas.actions import WorkPoolCreate
from prefect.client.schemas.objects import FlowRun, State
from prefect.states import Cancelling
from prefect.workers.process import ProcessWorker

from flows_engine.worker.worker_type import DicomflowWorker
from tests import services
from tests.services import ROOT, wait_until

pytestmark = pytest.mark.prefect

POOL = "warm"
PATIENCE_SECONDS = 120
WAITS = "import time\n(folder / 'waits').touch()\nwhile not (folder / 'go').exists(): time.sleep(0.02)\n"


class Site:
    """A worker of our type that runs, and the runs that are made for it."""

    def __init__(self, client: SyncPrefectClient, folder: Path) -> None:
        self.client = client
        self.log = folder / "worker.log"
        self.environment = {
            **services.prefect_environment(folder, api_url=str(client.api_url).rstrip("/")),
            "PYTHONPATH": str(ROOT),
            # Prefect's own type starts runs as plain `python`.
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
            # So seldom that whatever goes on here within its patience, it was not for a poll.
            "PREFECT_WORKER_QUERY_SECONDS": str(PATIENCE_SECONDS * 10),
        }
        self._deployments: dict[str, UUID] = {}

    def command(self, *arguments: str, pool: str = POOL) -> list[str]:
        return [sys.executable, "-m", "prefect", "worker", "start", "--pool", pool, *arguments]

    def deploy(self, pool: str, worker: type[ProcessWorker]) -> None:
        template = worker.get_default_base_job_template()
        self.client.create_work_pool(WorkPoolCreate(name=pool, type=worker.type, base_job_template=template))
        self._deployments[pool] = self.client.create_deployment(
            self.client.create_flow_from_name("act"),
            name=pool,
            work_pool_name=pool,
            entrypoint="tests.fakes.runnable_flows.act",
        )

    def start(self, code: str, folder: Path, *, pool: str = POOL, **job_variables: Any) -> UUID:
        folder.mkdir(exist_ok=True)
        return self.client.create_flow_run_from_deployment(
            self._deployments[pool],
            parameters={"code": code, "folder": str(folder)},
            job_variables=job_variables,
        ).id

    def run(self, code: str, folder: Path, **options: Any) -> FlowRun:
        return self.ended(self.start(code, folder, **options))

    def tell(self, expression: str, folder: Path, **options: Any) -> Any:
        """Return the value of ``expression`` in a run, which has to complete."""
        code = f"import json, os, sys; (folder / 'told').write_text(json.dumps({expression}))"
        assert self.run(code, folder, **options).state_name == "Completed"
        return json.loads((folder / "told").read_text())

    def ended(self, run_id: UUID) -> FlowRun:
        def run() -> FlowRun:
            return self.client.read_flow_run(run_id)

        wait_until(lambda: is_final(run().state), seconds=PATIENCE_SECONDS, what=f"run {run_id} is over")
        return run()

    def states(self, run_id: UUID) -> list[str]:
        return [state.name for state in self.client.read_flow_run_states(run_id)]

    def until(self, path: Path) -> None:
        wait_until(path.exists, seconds=PATIENCE_SECONDS, what=f"{path.name} is there")

    def processes(self, *words: str) -> list[int]:
        """Return the processes of the worker whose command lines have all ``words``."""
        found = []
        for path in Path("/proc").glob("[0-9]*/cmdline"):
            try:
                line = path.read_bytes().replace(b"\0", b" ").decode()
                ours = str(self.log.parent).encode() in path.with_name("environ").read_bytes()
            except OSError:
                continue
            if ours and all(word in line for word in words):
                found.append(int(path.parent.name))
        return found

    def zygote(self) -> int:
        """Return the zygote, which is the oldest of the processes that look like it."""
        return min(self.zygotes(), key=born)

    def zygotes(self) -> list[int]:
        """Return what looks like a zygote: the one there is, and what was forked from it."""
        return self.processes("flows_engine.worker.zygote")


def born(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19])


def is_final(state: State[Any] | None) -> bool:
    return state is not None and state.is_final()


@pytest.fixture(scope="module")
def site(prefect_server: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """A worker as a site starts it by hand, on a pool of our type, with two slots."""
    with SyncPrefectClient(prefect_server) as client:
        site = Site(client, tmp_path_factory.mktemp("worker"))
        site.deploy(POOL, DicomflowWorker)
        with services.running(site.command("--limit", "2"), log=site.log, environment=site.environment):
            wait_until(lambda: "started!" in site.log.read_text(), seconds=PATIENCE_SECONDS, what="the worker is up")
            yield site
        client.delete_work_pool(POOL)


def test_a_run_is_forked_and_prefect_knows_its_very_process(site: Site, tmp_path: Path):
    run_id = site.start(
        "import json, os, sys; (folder / 'told').write_text(json.dumps([os.getpid(), os.getppid()]))\n" + WAITS,
        tmp_path,
    )
    site.until(tmp_path / "waits")
    pid, parent = json.loads((tmp_path / "told").read_text())
    assert parent == site.zygote()
    assert Path(f"/proc/{pid}/comm").read_text() == "flow-run\n"
    wait_until(
        lambda: site.client.read_flow_run(run_id).infrastructure_pid == str(pid),
        seconds=PATIENCE_SECONDS,
        what="Prefect knows the process",
    )
    (tmp_path / "go").touch()
    assert site.ended(run_id).state_name == "Completed"
    assert site.states(run_id)[-3:] == ["Submitting", "Running", "Completed"]
    wait_until(lambda: not Path(f"/proc/{pid}").exists(), seconds=PATIENCE_SECONDS, what="the process is gone")


def test_a_run_has_the_environment_and_the_folder_that_it_is_given(site: Site, tmp_path: Path):
    here = tmp_path / "here"
    here.mkdir()
    told = site.tell(
        "[os.environ.get('MINE'), os.environ.get('PREFECT__FLOW_RUN_ID') is not None, os.getcwd(), os.getppid()]",
        tmp_path,
        env={"MINE": "yes"},
        working_dir=str(here),
    )
    assert told == ["yes", True, str(here), site.zygote()]
    # And has left nothing of it to the next one.
    mine, folder, parent = site.tell("[os.environ.get('MINE'), os.getcwd(), os.getppid()]", tmp_path)
    assert (mine, parent) == (None, site.zygote())
    assert folder not in (str(here), "/proc")


def test_what_cannot_be_changed_after_the_start_takes_effect_by_a_start_of_its_own(site: Site, tmp_path: Path):
    setting, parent = site.tell(
        "[__import__('prefect.settings').settings.PREFECT_TASK_DEFAULT_RETRIES.value(), os.getppid()]",
        tmp_path,
        env={"PREFECT_TASKS_DEFAULT_RETRIES": "4217"},
    )
    assert setting == 4217
    assert parent != site.zygote()
    told = [line for line in site.log.read_text().splitlines() if "started without the zygote" in line]
    assert "its environment has its own PREFECT_TASKS_DEFAULT_RETRIES" in told[-1]
    assert "4217" not in told[-1]


def test_its_log_is_prefects_and_what_it_prints_is_the_workers_only_if_asked_for(site: Site, tmp_path: Path):
    def logged(run: FlowRun) -> list[str]:
        return [log.message for log in site.client.read_logs() if log.flow_run_id == run.id]

    code = "import os\nprint('to the log')\nos.write(1, b'straight to file one\\n')"
    quiet = site.run(code, tmp_path, stream_output=False)
    wait_until(lambda: "to the log" in logged(quiet), seconds=PATIENCE_SECONDS, what="the line is in Prefect's log")
    assert "straight to file one" not in site.log.read_text()
    loud = site.run(code, tmp_path, stream_output=True)
    assert loud.state_name == "Completed"
    assert "straight to file one" in site.log.read_text()


@pytest.mark.parametrize(
    ("code", "status"),
    [
        ("import os, signal; os.kill(os.getpid(), signal.SIGKILL)", -9),
        ("import os; os._exit(3)", 3),
    ],
    ids=["killed", "exit 3"],
)
def test_a_process_that_dies_is_a_crash_with_its_status_and_its_hook(
    site: Site, tmp_path: Path, code: str, status: int
):
    run = site.run(code, tmp_path)

    assert run.state_name == "Crashed"
    assert f"status code: {status}." in (run.state.message if run.state else "")
    site.until(tmp_path / "hook-Crashed")
    assert site.tell("os.getppid()", tmp_path) == site.zygote()


def test_a_run_that_is_cancelled_ends_by_the_signal_and_its_hook_is_called(site: Site, tmp_path: Path):
    run_id = site.start(
        "import os; (folder / 'pid').write_text(str(os.getpid()))\ntry:\n    "
        + WAITS.replace("\n", "\n    ")
        + "\nfinally:\n    (folder / 'put in order').touch()",
        tmp_path,
    )
    site.until(tmp_path / "waits")
    site.client.set_flow_run_state(run_id, Cancelling())
    assert site.ended(run_id).state_name == "Cancelled"
    site.until(tmp_path / "hook-Cancelling")
    assert (tmp_path / "put in order").exists()
    assert not Path(f"/proc/{(tmp_path / 'pid').read_text()}").exists()


def test_a_third_run_waits_for_a_slot_and_takes_it_at_once(site: Site, tmp_path: Path):
    busy = [site.start(WAITS, tmp_path / name) for name in ("first", "second")]
    for name in ("first", "second"):
        site.until(tmp_path / name / "waits")
    third = site.start(WAITS, tmp_path / "third")
    # Nothing says that a run is not taken; a run of another pool that is made later is, meanwhile.
    assert site.states(third) == ["Scheduled"]
    (tmp_path / "first" / "go").touch()
    site.until(tmp_path / "third" / "waits")
    assert site.client.read_flow_run(busy[1]).state_name == "Running"
    for name in ("second", "third"):
        (tmp_path / name / "go").touch()
    assert {site.ended(run_id).state_name for run_id in (*busy, third)} == {"Completed"}


def test_a_run_outlives_its_zygote_and_the_next_has_another(site: Site, tmp_path: Path):
    run_id = site.start(WAITS, tmp_path)
    site.until(tmp_path / "waits")
    dead = site.zygote()
    os.kill(dead, signal.SIGKILL)
    parent = site.tell("os.getppid()", tmp_path / "next")
    assert parent not in (dead, 1)
    (tmp_path / "go").touch()
    assert site.ended(run_id).state_name == "Completed"
    assert "Crashed" not in site.states(run_id)
    assert parent in site.zygotes()


def test_runs_leave_the_worker_and_its_zygote_as_they_were(site: Site, tmp_path: Path):
    def open_files(pid: int) -> int:
        return len(list(Path(f"/proc/{pid}/fd").iterdir()))

    def memory_kib(pid: int) -> int:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
        return sum(int(line.split()[1]) for line in lines if line.startswith(("Private_Dirty", "Shared_Dirty")))

    def run_many(count: int, name: str) -> None:
        started = [site.start("pass", tmp_path / f"{name}-{number}") for number in range(count)]
        assert {site.ended(run_id).state_name for run_id in started} == {"Completed"}

    run_many(5, "warm up")
    zygote = site.zygote()
    wait_until(lambda: len(site.zygotes()) == 1, seconds=PATIENCE_SECONDS, what="all are gone")
    files, memory = open_files(zygote), memory_kib(zygote)
    run_many(12, "many")
    wait_until(lambda: len(site.zygotes()) == 1, seconds=PATIENCE_SECONDS, what="all are gone")
    assert site.zygote() == zygote
    assert open_files(zygote) <= files
    assert memory_kib(zygote) - memory < 256
    assert "Traceback" not in site.log.read_text()


def test_a_run_needs_no_module_of_prefect_that_the_zygote_has_not_imported(site: Site, tmp_path: Path):
    script = "import flows_engine.worker.warm_engine, json, sys; print(json.dumps(sorted(sys.modules)))"
    imported = subprocess.run(
        [sys.executable, "-c", script], env=site.environment, capture_output=True, text=True, check=True
    )

    needed = site.tell("sorted(sys.modules)", tmp_path)

    assert [name for name in set(needed) - set(json.loads(imported.stdout)) if not name.startswith("tests")] == []


def once(site: Site, *arguments: str, pool: str) -> str:
    """Run a worker until it has executed what waits in ``pool``, and return what it said."""
    done = subprocess.run(
        site.command("--run-once", *arguments, pool=pool),
        env=site.environment,
        capture_output=True,
        text=True,
        timeout=PATIENCE_SECONDS,
        check=True,
    )
    return done.stdout + done.stderr


def test_a_pool_of_prefects_own_type_is_served_by_either_worker(site: Site, tmp_path: Path):
    pool = "stock"
    site.deploy(pool, ProcessWorker)
    told = "import os; (folder / 'comm').write_text(open('/proc/self/comm').read())"
    try:
        for arguments, name in (([], "python"), (["--type", "dicomflow"], "flow-run")):
            command = "python -m prefect.engine"  # as pools of an earlier version have it
            run_id = site.start(told, tmp_path, pool=pool, command=command)
            said = once(site, *arguments, pool=pool)
            assert site.ended(run_id).state_name == "Completed", said
            assert (tmp_path / "comm").read_text().strip().startswith(name)
            assert "started without the zygote" not in said
    finally:
        site.client.delete_work_pool(pool)


def names(pids: Sequence[int]) -> list[str]:
    return [Path(f"/proc/{pid}/comm").read_text().strip() for pid in pids]


def test_a_worker_that_is_stopped_takes_its_zygote_and_its_runs_along(site: Site, tmp_path: Path):
    environment = {**site.environment, "PREFECT_HOME": str(tmp_path / "prefect")}
    log = tmp_path / "log"
    with services.running(site.command("--name", "second"), log=log, environment=environment) as worker:
        wait_until(lambda: "started!" in log.read_text(), seconds=PATIENCE_SECONDS, what="the worker is up")
        children = Path(f"/proc/{worker.pid}/task/{worker.pid}/children")
        (zygote,) = map(int, children.read_text().split())
        os.kill(worker.pid, signal.SIGTERM)
        assert worker.wait(PATIENCE_SECONDS) is not None
    assert not Path(f"/proc/{zygote}").exists()
