"""The Docker engine with what a model may do to it."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import docker
import pytest

from flows_engine.docker_runner import DockerRunner
from flows_engine.errors import (
    ContainerRefusedError,
    DiskFilledError,
    EngineUnavailableError,
    HostPathError,
    ImagePullFailedError,
    ModelTimedOutError,
    NoSpaceError,
    RunHaltedError,
)
from flows_engine.handoff.engine_address import EngineAddress
from flows_engine.interfaces import BindMount, ContainerResult, ContainerSpec
from flows_engine.registry_silence import RegistrySilence
from tests.remote_engine import own_engine

pytestmark = pytest.mark.docker
LABEL = "dicomflow.test"


class Bench:
    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.value = uuid.uuid4().hex
        self.lines: list[str] = []
        self.notices: list[str] = []
        self.silence = RegistrySilence(folder=folder / "silent")
        self.runner = DockerRunner(find_engine=own_engine, silence=self.silence)

    def spec(
        self, script: str, *, image: str = "busybox", pull: bool = False, network: bool = False, **options: object
    ) -> ContainerSpec:
        return ContainerSpec(
            name=f"dicomflow-test-{self.value}",
            image=image,
            mounts=(
                BindMount(source=self.folder / "in", target="/input", read_only=True),
                BindMount(source=self.folder / "out", target="/output", read_only=False),
            ),
            labels={LABEL: self.value},
            timeout_seconds=60,
            pull=pull,
            network=network,
            options={"command": ["sh", "-c", script], "security_opt": ["no-new-privileges"], **options},
        )

    def refuse_once_it_began(self) -> None:
        if (self.folder / "out" / "begun").exists():
            raise DiskFilledError

    def run(self, script: str, **how: object) -> ContainerResult:
        self.lines.clear()
        return self.runner.run(
            self.spec(script, **how),  # type: ignore[arg-type]
            on_line=self.lines.append,
            on_notice=self.notices.append,
        )


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "slice").write_bytes(b"pixels")
    (tmp_path / "out").mkdir()
    (tmp_path / "out").chmod(0o777)
    bench = Bench(tmp_path)
    yield bench
    assert bench.runner.remove_all(label=LABEL, value=bench.value) == 0


def test_hello_world_loses_no_line(bench: Bench) -> None:
    for _ in range(3):
        spec = bench.spec("", image="hello-world")
        del spec.options["command"]
        bench.lines.clear()
        result = bench.runner.run(spec, on_line=bench.lines.append, on_notice=bench.notices.append)
        assert result.exit_code == 0
        assert any("Hello from Docker" in line for line in bench.lines)


def test_the_input_is_read_only_and_any_user_may_write_the_output(bench: Bench) -> None:
    result = bench.run("touch /input/x; echo x > /output/mine; id -u", user="4711")
    assert result.exit_code == 0
    assert "4711" in bench.lines
    assert any("Read-only file system" in line for line in bench.lines)
    assert (bench.folder / "out" / "mine").stat().st_uid == 4711
    assert [path.name for path in (bench.folder / "in").iterdir()] == ["slice"]


def test_there_is_no_network_but_the_loopback(bench: Bench) -> None:
    bench.run("ls /sys/class/net")
    assert bench.lines == ["lo"]


def test_privileges_cannot_be_gained(bench: Bench) -> None:
    bench.run("grep NoNewPrivs /proc/self/status")
    assert bench.lines == ["NoNewPrivs:\t1"]


def test_a_binary_log_and_one_without_a_line_end(bench: Bench) -> None:
    bench.run(r"head -c 300000 /dev/urandom; printf '\n\377last'")
    assert bench.lines[-1] == "\ufffdlast"
    assert not [c for line in bench.lines for c in line if ord(c) < 0x20 and c != "\t"]


def test_a_huge_log_is_bounded_and_its_end_is_kept(bench: Bench) -> None:
    result = bench.run("yes 0123456789012345678901234567890123456789 | head -c 40000000; echo; echo the reason; exit 5")
    assert result.exit_code == 5
    assert result.log_tail[-1] == "the reason"
    assert sum(map(len, bench.lines)) < 11 * 1024 * 1024
    assert sum("the rest of this log is left out" in line for line in bench.lines) == 1


def test_two_streams_do_not_break_each_others_lines(bench: Bench) -> None:
    bench.run("printf half >&1; sleep 0.3; echo whole >&2; sleep 0.3; echo -line")
    assert bench.lines == ["whole", "half-line"]


@pytest.mark.parametrize("driver", ["none", "json-file"])
def test_the_log_comes_whatever_the_engine_keeps_of_it(bench: Bench, driver: str) -> None:
    bench.run("echo said", log_config={"type": driver, "config": {}})
    assert bench.lines == ["said"]


def test_lines_come_while_it_runs(bench: Bench) -> None:
    came: list[float] = []
    result = bench.runner.run(
        bench.spec("echo one; sleep 1.5; echo two"), on_line=lambda _: came.append(time.monotonic()), on_notice=print
    )
    assert result.duration_seconds > 1.5
    assert came[1] - came[0] > 1.2


def test_a_container_that_closes_its_log_is_still_waited_for(bench: Bench) -> None:
    assert bench.run("exec >&- 2>&-; sleep 1; exit 4").exit_code == 4


@pytest.mark.parametrize("by", ["is_halted", "watch"])
def test_a_container_whose_log_is_lost_is_looked_after_all_the_same(
    bench: Bench, by: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("flows_engine.docker_runner._STOP_SECONDS", 1)
    monkeypatch.setattr("flows_engine.docker_runner._read", lambda _stream, chunks, _abandoned: chunks.put(None))
    ends = {"is_halted": (bench.folder / "out" / "begun").exists, "watch": bench.refuse_once_it_began}[by]
    spec = replace(bench.spec("touch /output/begun; while :; do usleep 10000; done"), timeout_seconds=20)
    with pytest.raises((RunHaltedError, DiskFilledError)):
        bench.runner.run(spec, on_line=bench.lines.append, on_notice=print, **{by: ends})  # type: ignore[arg-type]


def test_what_a_container_left_is_looked_at_once_more_where_it_failed(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("flows_engine.docker_runner._LOOK_SECONDS", 30)  # none while it runs
    for code in (0, 3):
        spec = bench.spec(f"touch /output/begun; exit {code}")
        expected = pytest.raises(DiskFilledError) if code else contextlib.nullcontext()
        with expected:
            bench.runner.run(spec, on_line=print, on_notice=print, watch=bench.refuse_once_it_began)


def test_a_container_that_does_not_want_to_end_is_killed(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("flows_engine.docker_runner._STOP_SECONDS", 1)
    script = "trap 'echo no' TERM; (trap '' TERM; while :; do usleep 10000; done) & echo begun; while :; do wait; done"
    with pytest.raises(RunHaltedError):
        bench.runner.run(
            bench.spec(script), on_line=bench.lines.append, on_notice=print, is_halted=lambda: bool(bench.lines)
        )


def test_what_a_container_began_ends_with_it(bench: Bench) -> None:
    started = time.monotonic()
    assert bench.run("(trap '' TERM HUP; while :; do usleep 10000; done) & echo begun").exit_code == 0
    assert bench.lines == ["begun"]
    assert time.monotonic() - started < 10


def test_a_fork_bomb_has_a_bound_and_an_end(bench: Bench) -> None:
    spec = replace(bench.spec("b() { b | b & }; b; while :; do usleep 10000; done", pids_limit=200), timeout_seconds=2)
    with contextlib.suppress(ModelTimedOutError):  # or its shell gives up, since it cannot fork either
        assert bench.runner.run(spec, on_line=bench.lines.append, on_notice=print).exit_code != 0
    assert any("can't fork" in line for line in bench.lines)


def test_where_the_engine_has_no_room_for_containers_none_runs(bench: Bench) -> None:
    runner = replace(bench.runner, disk_reserve_bytes=2**60)
    with pytest.raises(NoSpaceError, match=r"not run, since only .* MiB are free on the disk of .*DISK_RESERVE_BYTES"):
        runner.run(bench.spec("sleep 100"), on_line=bench.lines.append, on_notice=print)


def test_what_a_killed_process_left_under_the_name_is_removed(bench: Bench) -> None:
    engine = docker.DockerClient(base_url=own_engine().url)
    engine.containers.run("busybox", "sleep 1000", name=f"dicomflow-test-{bench.value}", detach=True)
    engine.close()
    assert bench.run("echo fresh").exit_code == 0
    assert bench.lines == ["fresh"]


def test_ten_thousand_files(bench: Bench) -> None:
    script = "cd /output && i=0; while [ $i -lt 10000 ]; do : > $i; i=$((i+1)); done"
    assert bench.run(script).exit_code == 0
    assert sum(1 for _ in (bench.folder / "out").iterdir()) == 10_000


def test_a_command_that_is_not_there_is_refused_with_the_engines_words(bench: Bench) -> None:
    with pytest.raises(ContainerRefusedError, match="no-such-command"):
        bench.run("", command=["no-such-command"])


def test_an_engine_that_gives_no_gpus_is_told_with_what_to_install(bench: Bench) -> None:
    spec = bench.spec("true")
    with pytest.raises(ContainerRefusedError, match=r"install nvidia-container-toolkit.*nvidia-ctk runtime configure"):
        bench.runner.run(
            ContainerSpec(**{**spec.__dict__, "gpu_ids": ("0",)}), on_line=bench.lines.append, on_notice=print
        )


def test_a_pull_that_fails_falls_back_to_the_image_in_the_engine(bench: Bench) -> None:
    engine = docker.DockerClient(base_url=own_engine().url)
    reference = "dicomflow.invalid/test:1"
    engine.images.get("busybox").tag(reference)
    try:
        assert bench.run("true", image=reference, pull=True).exit_code == 0
        assert len(bench.notices) == 1
        assert reference in bench.notices[0]
        assert "could not be pulled" in bench.notices[0]
    finally:
        engine.images.remove(reference)
        engine.close()


def test_a_registry_that_swallows_packets_is_waited_for_once(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("flows_engine.docker_runner._FIRST_WORD_SECONDS_IF_PRESENT", 1.0)
    monkeypatch.setattr("flows_engine.docker_runner._FIRST_WORD_SECONDS", 1.5)
    engine = docker.DockerClient(base_url=own_engine().url)
    with socket.create_server(("127.0.0.1", 0)) as registry:
        reference = f"localhost:{registry.getsockname()[1]}/model:1"
        with pytest.raises(ImagePullFailedError, match="did not answer within"):
            bench.run("true", image=reference.replace("model", "missing"), pull=True)
        engine.images.get("busybox").tag(reference)
        try:
            start = time.monotonic()
            assert bench.run("true", image=reference, pull=True).exit_code == 0
            assert "a short while ago" in bench.notices[-1]
            assert time.monotonic() - start < 20
        finally:
            engine.images.remove(reference)
            engine.close()


@pytest.mark.parametrize("sent", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_that_becomes_an_exception_leaves_no_container(bench: Bench, sent: signal.Signals) -> None:
    script = """
import signal, sys
from pathlib import Path
from flows_engine.docker_runner import DockerRunner
from flows_engine.handoff.engine_address import EngineAddress
from flows_engine.interfaces import ContainerSpec
from flows_engine.registry_silence import RegistrySilence

class Terminated(BaseException): pass
def stop(number, frame): raise Terminated
signal.signal(signal.SIGTERM, stop)
folder, value, url = Path(sys.argv[1]), sys.argv[2], sys.argv[3]
spec = ContainerSpec(name="dicomflow-test-" + value, image="busybox", mounts=(), labels={"dicomflow.test": value},
    timeout_seconds=600, pull=False, network=False,
    options={"command": ["sh", "-c", "trap 'echo asked; exit 0' TERM; echo ready; while :; do sleep 0.1; done"]})
runner = DockerRunner(find_engine=lambda: EngineAddress(url=url), silence=RegistrySilence(folder=folder))
runner.run(spec, on_line=lambda line: print(line, flush=True), on_notice=print)
"""
    process = subprocess.Popen(
        [sys.executable, "-c", script, str(bench.folder), bench.value, own_engine().url],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=dict(os.environ),
    )
    watchdog = threading.Timer(60, process.kill)
    watchdog.start()
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == b"ready\n"
        process.send_signal(sent)
        start = time.monotonic()
        _, errors = process.communicate()
        assert time.monotonic() - start < 10
        assert (b"Terminated" if sent == signal.SIGTERM else b"KeyboardInterrupt") in errors
    finally:
        watchdog.cancel()
        with contextlib.suppress(ProcessLookupError):
            process.kill()


def test_an_engine_that_does_not_answer_says_what_to_do(tmp_path: Path) -> None:
    nowhere = EngineAddress(url=f"unix://{tmp_path}/nothing.sock")
    runner = DockerRunner(find_engine=lambda: nowhere, silence=RegistrySilence(folder=tmp_path / "silent"))
    with pytest.raises(EngineUnavailableError, match="start it"):
        runner.remove_all(label=LABEL, value="x")


def test_a_folder_that_is_not_the_engines_is_not_mounted(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("flows_engine.host_paths.HostPaths._same_mounts", lambda *_: False)
    monkeypatch.setattr("flows_engine.host_paths.HostPaths._same_place", lambda *_: False)
    with pytest.raises(HostPathError):
        bench.run("true")
