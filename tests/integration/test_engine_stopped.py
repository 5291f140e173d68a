"""A container that something outside stopped has no result, whatever its exit code: its model is to be run again."""

from __future__ import annotations

import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from flows_engine.docker_runner import DockerRunner
from flows_engine.errors import ModelInterruptedError, RetryableError
from flows_engine.handoff.engine_address import EngineAddress
from flows_engine.interfaces import ContainerResult, ContainerSpec
from flows_engine.registry_silence import RegistrySilence
from tests.fakes.events_relay import EventsRelay
from tests.local_engine import LocalEngine, local_engine

pytestmark = [pytest.mark.docker, pytest.mark.dockerd]
LABEL, NAME = "dicomflow.test", "dicomflow-test-stopped"


@pytest.fixture(scope="module", params=[False, True], ids=["its own socket", "socket of systemd"])
def engine(request: pytest.FixtureRequest) -> Iterator[LocalEngine]:
    with local_engine("busybox", is_socket_held=request.param) as engine:
        yield engine


class Bench:
    def __init__(self, engine: LocalEngine, folder: Path) -> None:
        self.engine = engine
        address = EngineAddress(url=engine.url)
        self.runner = DockerRunner(find_engine=lambda: address, silence=RegistrySilence(folder=folder / "silent"))

    def run(self, *, when_term: int, do: Callable[[], object]) -> ContainerResult:
        """Run a model that exits with a code of its own when it is asked to end; do something as soon as it runs."""
        return self.run_script(f"trap 'exit {when_term}' TERM; echo begun; sleep 600 & wait", do=do)

    def run_script(
        self,
        script: str,
        *,
        do: Callable[[], object],
        name: str = NAME,
        runner: DockerRunner | None = None,
        **options: object,
    ) -> ContainerResult:
        """Run a model; do something as soon as it says that it has begun."""
        spec = ContainerSpec(
            name=name,
            image="busybox",
            mounts=(),
            labels={LABEL: "stopped"},
            timeout_seconds=60,
            pull=False,
            network=False,
            options={"command": ["sh", "-c", script], **options},
        )
        begun = threading.Event()
        # What starts an engine has to live as long as it: the main thread.
        with ThreadPoolExecutor() as pool:
            ended = pool.submit(
                (runner or self.runner).run, spec, on_line=lambda _: begun.set(), on_notice=lambda _: None
            )
            assert begun.wait(60)
            do()
            return ended.result()

    def stop(self) -> None:
        with self.engine.client() as client:
            client.api.stop(NAME)

    def restart(self) -> None:
        self.engine.stop()
        self.engine.start()

    def crash(self) -> None:
        self.engine.kill()
        self.engine.start()

    def kill(self, signal: str = "SIGKILL") -> None:
        with self.engine.client() as client:
            client.api.kill(NAME, signal=signal)


@pytest.fixture
def bench(engine: LocalEngine, tmp_path: Path) -> Bench:
    return Bench(engine, tmp_path)


@pytest.mark.parametrize("code", [0, 143])
def test_a_model_that_is_stopped_by_hand_is_neither_done_nor_failed(bench: Bench, code: int) -> None:
    with pytest.raises(ModelInterruptedError, match="was stopped by the Docker engine"):
        bench.run(when_term=code, do=bench.stop)


def test_a_model_that_is_killed_by_hand_did_not_fail(bench: Bench) -> None:
    with pytest.raises(ModelInterruptedError, match="docker kill"):
        bench.run(when_term=0, do=bench.kill)


@pytest.mark.parametrize("code", [0, 143])
def test_a_model_whose_engine_is_stopped_is_neither_done_nor_failed(bench: Bench, code: int) -> None:
    with pytest.raises(RetryableError):
        bench.run(when_term=code, do=bench.restart)
    bench.runner.remove_all(label=LABEL, value="stopped")


def test_a_model_whose_engine_is_killed_and_started_again_is_run_again(bench: Bench) -> None:
    with pytest.raises(RetryableError):
        bench.run(when_term=0, do=bench.crash)
    bench.runner.remove_all(label=LABEL, value="stopped")


def test_what_an_engine_makes_up_of_a_model_that_ended_while_it_was_away_is_not_believed(bench: Bench) -> None:
    def crash_until_the_model_has_ended() -> None:
        bench.engine.kill()
        time.sleep(1.5)
        bench.engine.start()

    with pytest.raises(RetryableError):
        bench.run_script("echo begun; sleep 0.7", do=crash_until_the_model_has_ended)
    bench.runner.remove_all(label=LABEL, value="stopped")


def test_a_signal_that_a_model_takes_note_of_costs_it_nothing(bench: Bench) -> None:
    script = "trap 'exit 0' USR1; echo begun; while true; do sleep 0.05; done"
    assert bench.run_script(script, do=lambda: bench.kill("SIGUSR1")).exit_code == 0


def test_a_model_that_is_stopped_by_a_signal_of_its_own_is_not_done(bench: Bench) -> None:
    script = "trap 'exit 0' INT; echo begun; while true; do sleep 0.05; done"
    with pytest.raises(ModelInterruptedError):
        bench.run_script(script, do=bench.stop, stop_signal="SIGINT")


def test_what_stops_a_tenth_model_does_not_concern_the_first(bench: Bench) -> None:
    script = "trap 'exit 0' USR1; echo begun; while true; do sleep 0.05; done"

    def stop_the_tenth() -> None:
        with pytest.raises(ModelInterruptedError):
            bench.run_script("echo begun; exec sleep 600", do=lambda: kill(f"{NAME}-10", "SIGKILL"), name=f"{NAME}-10")
        kill(f"{NAME}-1", "SIGUSR1")

    def kill(name: str, signal: str) -> None:
        with bench.engine.client() as client:
            client.api.kill(name, signal=signal)

    assert bench.run_script(script, do=stop_the_tenth, name=f"{NAME}-1").exit_code == 0


@pytest.fixture
def relay(engine: LocalEngine) -> Iterator[EventsRelay]:
    # A socket's path has 107 bytes at most, which pytest's folders may exceed.
    with tempfile.TemporaryDirectory() as folder, EventsRelay(engine.folder / "docker.sock", Path(folder)) as relay:
        yield relay


def _cut(bench: Bench, relay: EventsRelay, tmp_path: Path, *, then: Callable[[], object]) -> ContainerResult:
    address = EngineAddress(url=relay.url)
    runner = DockerRunner(find_engine=lambda: address, silence=RegistrySilence(folder=tmp_path / "silent"))

    def cut() -> None:
        assert relay.cut() == 1
        then()

    script = "trap 'exit 0' USR1 TERM; echo begun; while true; do sleep 0.05; done"
    return bench.run_script(script, do=cut, runner=runner)


def test_a_cut_connection_costs_no_result(bench: Bench, relay: EventsRelay, tmp_path: Path) -> None:
    assert _cut(bench, relay, tmp_path, then=lambda: bench.kill("SIGUSR1")).exit_code == 0


def test_a_stop_behind_a_cut_connection_is_known(bench: Bench, relay: EventsRelay, tmp_path: Path) -> None:
    with pytest.raises(ModelInterruptedError):
        _cut(bench, relay, tmp_path, then=bench.stop)
