"""What a ContainerRunner promises, asked of the fake and of the Docker engine."""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from flows_engine.docker_runner import DockerRunner
from flows_engine.errors import (
    DiskFilledError,
    ImagePullFailedError,
    ImageUnavailableError,
    ModelTimedOutError,
    RunHaltedError,
)
from flows_engine.handoff.engine_address import EngineAddress
from flows_engine.interfaces import BindMount, ContainerRunner, ContainerSpec
from flows_engine.registry_silence import RegistrySilence
from tests.fakes.container_runner import FOREVER, FakeContainerRunner
from tests.remote_engine import own_engine, remote_engine

LABEL = "dicomflow.test"


def _says(*said: object) -> Callable[[ContainerSpec], Iterator[object]]:
    return lambda _spec: iter(said)


def _copies(spec: ContainerSpec) -> Iterator[object]:
    source, target = (mount.source for mount in spec.mounts)
    for file in source.iterdir():
        (target / file.name).write_bytes(file.read_bytes())
    yield 0


def _goes_on(_spec: ContainerSpec) -> Iterator[object]:
    while True:
        yield "begun"


# What a test asks for -> the fake's program, and what busybox is told.
PROGRAMS = {
    "three lines": (_says("one", "two", "three", 0), "echo one; echo two; echo three"),
    "fails": (_says("no weights", 3), "echo no weights; exit 3"),
    "copies": (_copies, "cp /input/* /output/"),
    "never ends": (_says("begun", FOREVER), "trap exit TERM; echo begun; sleep 1000 & wait"),
    "silent": (_says(0), "true"),
    "goes on": (_goes_on, "trap exit TERM; echo begun; while true; do sleep 0.1; done"),
}


@dataclass
class Bench:
    runner: ContainerRunner
    folder: Path
    is_fake: bool
    value: str

    def spec(
        self, program: str, *, timeout_seconds: float = 60, pull: bool = False, missing: bool = False
    ) -> ContainerSpec:
        image = "dicomflow.invalid/no-such-image:1" if missing else program if self.is_fake else "busybox"
        return ContainerSpec(
            name=f"dicomflow-test-{self.value}",
            image=image,
            mounts=(
                BindMount(source=self.folder / "in", target="/input", read_only=True),
                BindMount(source=self.folder / "out", target="/output", read_only=False),
            ),
            labels={LABEL: self.value},
            timeout_seconds=timeout_seconds,
            pull=pull,
            network=False,
            options={"command": ["sh", "-c", PROGRAMS[program][1]]},
        )

    def assert_gone(self) -> None:
        assert self.runner.remove_all(label=LABEL, value=self.value) == 0


_DOCKERD = [pytest.mark.docker, pytest.mark.dockerd]


@pytest.fixture(
    scope="module",
    params=[
        "fake",
        pytest.param("docker", marks=pytest.mark.docker),
        pytest.param("remote", marks=_DOCKERD),
        pytest.param("remote with TLS", marks=_DOCKERD),
    ],
)
def engine(request: pytest.FixtureRequest) -> Iterator[EngineAddress | None]:
    """Where the engine is that runs the containers; None for the fake."""
    match request.param:
        case "fake":
            yield None
        case "docker":
            yield own_engine()
        case _:
            with remote_engine("busybox", with_tls="TLS" in request.param) as remote:
                yield remote.address


@pytest.fixture
def bench(engine: EngineAddress | None, tmp_path: Path) -> Bench:
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "slice").write_bytes(b"pixels")
    (tmp_path / "out").mkdir()
    runner: ContainerRunner = (
        FakeContainerRunner({name: program for name, (program, _) in PROGRAMS.items()})
        if engine is None
        else DockerRunner(find_engine=lambda: engine, silence=RegistrySilence(folder=tmp_path / "silent"))
    )
    return Bench(runner=runner, folder=tmp_path, is_fake=engine is None, value=uuid.uuid4().hex)


def _ignore(_: str) -> None:
    return None


def test_lines_come_in_order_and_end_with_the_run(bench: Bench) -> None:
    lines: list[str] = []
    result = bench.runner.run(bench.spec("three lines"), on_line=lines.append, on_notice=_ignore)
    assert lines == ["one", "two", "three"]
    assert result.exit_code == 0
    assert result.log_tail == tuple(lines)
    bench.assert_gone()


def test_a_nonzero_exit_code_is_a_result(bench: Bench) -> None:
    result = bench.runner.run(bench.spec("fails"), on_line=_ignore, on_notice=_ignore)
    assert (result.exit_code, result.log_tail) == (3, ("no weights",))
    assert result.image_digest.startswith("sha256:") or "@sha256:" in result.image_digest
    bench.assert_gone()


def test_mounts_are_where_the_specification_says(bench: Bench) -> None:
    result = bench.runner.run(bench.spec("copies"), on_line=_ignore, on_notice=_ignore)
    assert result.exit_code == 0
    assert (bench.folder / "out" / "slice").read_bytes() == b"pixels"


def test_a_container_that_prints_nothing_has_no_lines(bench: Bench) -> None:
    lines: list[str] = []
    assert bench.runner.run(bench.spec("silent"), on_line=lines.append, on_notice=_ignore).log_tail == ()
    assert lines == []


def test_timeout_kills(bench: Bench) -> None:
    lines: list[str] = []
    with pytest.raises(ModelTimedOutError):
        bench.runner.run(bench.spec("never ends", timeout_seconds=1.5), on_line=lines.append, on_notice=_ignore)
    assert lines == ["begun"]
    bench.assert_gone()


@pytest.mark.parametrize("kind", [RuntimeError, KeyboardInterrupt])
def test_an_exception_leaves_no_container(bench: Bench, kind: type[BaseException]) -> None:
    def stop(_: str) -> None:
        raise kind

    with pytest.raises(kind):
        bench.runner.run(bench.spec("never ends"), on_line=stop, on_notice=_ignore)
    bench.assert_gone()


@pytest.mark.parametrize(
    ("pull", "error"), [(True, ImagePullFailedError), (False, ImageUnavailableError)], ids=["no registry", "no pull"]
)
def test_a_missing_image_is_named(bench: Bench, pull: bool, error: type[Exception]) -> None:
    with pytest.raises(error, match="no-such-image"):
        bench.runner.run(bench.spec("silent", missing=True, pull=pull), on_line=_ignore, on_notice=_ignore)
    bench.assert_gone()


def test_without_a_pull_there_is_nothing_to_note(bench: Bench) -> None:
    notices: list[str] = []
    bench.runner.run(bench.spec("silent", pull=False), on_line=_ignore, on_notice=notices.append)
    assert notices == []


def test_find_all_tells_the_labels_of_what_carries_one_and_of_nothing_else(bench: Bench) -> None:
    found: list[object] = []

    def from_outside(_: str) -> None:
        found.append(bench.runner.find_all(label=LABEL, value="another"))
        found.append(bench.runner.find_all(label=LABEL, value=bench.value))
        raise InterruptedError

    spec = bench.spec("never ends")
    with pytest.raises(InterruptedError):
        bench.runner.run(replace(spec, labels={**spec.labels, "more": "0,1"}), on_line=from_outside, on_notice=_ignore)
    assert found == [(), ({LABEL: bench.value, "more": "0,1"},)]
    assert bench.runner.find_all(label=LABEL, value=bench.value) == ()


def test_remove_all_takes_what_carries_the_label_and_nothing_else(bench: Bench) -> None:
    removed: list[int] = []

    def from_outside(_: str) -> None:
        removed.append(bench.runner.remove_all(label=LABEL, value="another"))
        removed.append(bench.runner.remove_all(label=LABEL, value=bench.value))
        raise InterruptedError

    with pytest.raises(InterruptedError):
        bench.runner.run(bench.spec("never ends"), on_line=from_outside, on_notice=_ignore)
    assert removed == [0, 1]
    bench.assert_gone()


def test_a_run_that_ends_stops_its_container(bench: Bench) -> None:
    said: list[str] = []
    with pytest.raises(RunHaltedError):
        bench.runner.run(
            bench.spec("goes on"), on_line=said.append, on_notice=said.append, is_halted=lambda: bool(said)
        )
    assert said[0] == "begun"
    bench.assert_gone()


@pytest.mark.parametrize("program", ["goes on", "fails"])
def test_a_container_that_is_watched_is_killed_at_once(bench: Bench, program: str) -> None:
    said: list[str] = []

    def watch() -> None:
        if said:
            raise DiskFilledError("too little is free")

    started = time.monotonic()
    with pytest.raises(DiskFilledError, match=r"^too little is free$"):
        bench.runner.run(bench.spec(program), on_line=said.append, on_notice=_ignore, watch=watch)
    assert time.monotonic() - started < 5  # for what is asked to end there are 5 seconds
    bench.assert_gone()
