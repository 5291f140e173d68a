"""Services under a real supervisord: kept running, stopped in order, and gone with whoever started them."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest

from deployments.services import HostPlan, Service
from deployments.supervision import Supervisor
from tests.services import ROOT, wait_until

# Writes its process id where its first argument says, and what it was stopped by to the file of the second.
SERVICE = """
import os, signal, sys
name = os.path.basename(sys.argv[1])

def stop(number, _):
    with open(sys.argv[2], "a") as log:
        log.write(name + " " + signal.Signals(number).name + "\\n")
    sys.exit(0)

for number in (signal.SIGTERM, signal.SIGINT):
    signal.signal(number, stop)
with open(sys.argv[1] + ".new", "w") as file:
    file.write(str(os.getpid()))
os.rename(sys.argv[1] + ".new", sys.argv[1])
print("started", flush=True)
while True:
    signal.pause()
"""
DEAF = "import signal, os, sys; signal.signal(signal.SIGTERM, signal.SIG_IGN)\n" + SERVICE.replace(
    "signal.signal(number, stop)", "signal.signal(number, signal.SIG_IGN)"
)


class Services:
    """Tiny services below a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.stops = folder / "stops"
        folder.mkdir(parents=True, exist_ok=True)

    def service(self, name: str, *, rank: int = 1, code: str = SERVICE, **values: object) -> Service:
        script = self.folder / f"{name}.py"
        script.write_text(code)
        command = (sys.executable, str(script), str(self.folder / name), str(self.stops))
        return Service(name=name, command=command, rank=rank, **values)  # type: ignore[arg-type]

    def supervisor(self, services: Sequence[Service]) -> Supervisor:
        plan = HostPlan(services=tuple(services), environment=dict(os.environ), api_url="http://127.0.0.1:1/api")
        return Supervisor(plan, run_folder=self.folder / "run", log_folder=self.folder / "logs")

    @contextmanager
    def running(self, *services: Service) -> Iterator[Supervisor]:
        supervisor = self.supervisor(services)
        supervisor.start()
        try:
            for service in services:
                self.pid(service.name)
            yield supervisor
        finally:
            supervisor.stop()

    def pid(self, name: str) -> int:
        path = self.folder / name
        wait_until(path.exists, seconds=20, what=f"{name} starts")
        return int(path.read_text())


@pytest.fixture
def services(tmp_path: Path) -> Services:
    return Services(tmp_path)


def alive(pid: int) -> bool:
    try:
        status = Path(f"/proc/{pid}/stat").read_text()
    except FileNotFoundError:
        return False
    # An orphan whose new parent does not wait for its children stays as a zombie.
    return status.rpartition(")")[2].split()[0] != "Z"


def test_a_service_that_dies_is_started_again(services: Services):
    with services.running(services.service("one")):
        first = services.pid("one")
        (services.folder / "one").unlink()
        os.kill(first, signal.SIGKILL)
        assert services.pid("one") != first


def test_services_are_stopped_last_started_first_each_by_its_own_signal(services: Services):
    with services.running(
        services.service("database", rank=10, stop_signal="INT"),
        services.service("server", rank=20),
        services.service("worker", rank=40),
    ) as supervisor:
        supervisor.stop()
        assert not supervisor.running

    assert services.stops.read_text().splitlines() == ["worker SIGTERM", "server SIGTERM", "database SIGINT"]


def test_a_service_that_does_not_listen_is_killed_in_the_end(services: Services):
    with services.running(services.service("deaf", code=DEAF, stop_seconds=1)) as supervisor:
        pid = services.pid("deaf")
        supervisor.stop()

    assert not alive(pid)


def test_stopping_twice_is_stopping_once(services: Services):
    with services.running(services.service("one")) as supervisor:
        supervisor.stop()
        supervisor.stop()

    assert supervisor.wait() == 0
    assert services.stops.read_text().splitlines() == ["one SIGTERM"]


def test_a_path_may_be_called_anything(tmp_path: Path):
    name = '100% of %(here)s, ward #1 ;a  it\'s "the" Größe 🩻'
    services = Services(tmp_path / name)

    with services.running(services.service("one")) as supervisor:
        assert alive(services.pid("one"))
        assert supervisor.log_folder == tmp_path / name / "logs"
        wait_until(
            lambda: (supervisor.log_folder / "one.log").read_text() == "started\n", seconds=10, what="the service's log"
        )

    assert (tmp_path / name / "logs" / "supervisord.log").stat().st_size > 0
    assert sorted(path.name for path in tmp_path.iterdir()) == [name]


PARENT = """
import sys
from pathlib import Path
sys.path.insert(0, {root!r})
from deployments.services import HostPlan, Service
from deployments.supervision import Supervisor

service = Service(name="one", command=tuple(sys.argv[2:]), rank=1)
plan = HostPlan(services=(service,), environment={{**__import__("os").environ}}, api_url="")
supervisor = Supervisor(plan, run_folder=Path(sys.argv[1], "run"), log_folder=Path(sys.argv[1], "logs"))
supervisor.start()
supervisor.wait()
"""


def _kill_the_parent(parent: subprocess.Popen[bytes], _folder: Path) -> None:
    parent.kill()


def _kill_supervisord(_parent: subprocess.Popen[bytes], folder: Path) -> None:
    pid = folder / "run" / "supervisord.pid"
    wait_until(lambda: pid.exists() and pid.read_text().strip() != "", seconds=10, what="supervisord writes its id")
    os.kill(int(pid.read_text()), signal.SIGKILL)


@pytest.mark.parametrize("kill", [_kill_the_parent, _kill_supervisord])
def test_nothing_is_left_behind_by_a_sudden_end(
    services: Services, kill: Callable[[subprocess.Popen[bytes], Path], None]
):
    service = services.service("one")
    parent = subprocess.Popen(
        [sys.executable, "-c", PARENT.format(root=str(ROOT)), str(services.folder), *service.command]
    )
    try:
        child = services.pid("one")
        kill(parent, services.folder)
        wait_until(lambda: not alive(child), seconds=15, what="the service ends")
        parent.wait(timeout=15)
    finally:
        parent.kill()
        parent.wait()
    assert services.stops.read_text().splitlines() == ["one SIGTERM"]
