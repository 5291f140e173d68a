"""GPUs on an engine that takes requests for them: what a container is given, and what a dead run leaves behind."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import subprocess
import sys
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import docker
import pynvml
import pytest

from flows_engine.container_spec import GPUS_LABEL, LEASE_LABEL, RUN_LABEL
from flows_engine.definition.schema import FlowDefinition
from flows_engine.docker_runner import DockerRunner
from flows_engine.errors import ContainerRefusedError, GpuLostError, ModelFailedError
from flows_engine.handoff.site_settings import SiteSettings
from flows_engine.handoff.study_store import Fingerprint
from flows_engine.run_step import StepResult
from flows_engine.wiring import build_engine
from tests.fakes.nvml import FakeNvml
from tests.gpu_engine import gpu_engine
from tests.integration.one_study import STUDY, write_record
from tests.services import ROOT, wait_until

pytestmark = [pytest.mark.docker, pytest.mark.dockerd]

# A flow run, as far as it matters here: its process, and the container of its first step.
RUN = """
import json, logging, os, sys
from flows_engine.definition.schema import FlowDefinition
from flows_engine.docker_runner import DockerRunner
from flows_engine.wiring import site_engine
definition = FlowDefinition.model_validate(json.loads(sys.argv[1]))
site_engine().run_step(definition, step=0, run_id=sys.argv[2], study_id=sys.argv[3], logger=logging.getLogger())
"""


@pytest.fixture(scope="module")
def engine_address() -> Iterator[str]:
    with gpu_engine("busybox") as url:
        yield url


class Site:
    """An installation with the GPUs 0 and 1, which do not exist, on an engine that gives them out all the same."""

    def __init__(self, folder: Path, engine_address: str) -> None:
        self.settings = SiteSettings(
            data_dir=folder / "data", static_dir=folder / "static", gpus=("0", "1"), docker_host=engine_address
        )
        self.environment = {**os.environ, **self.settings.as_environment()}
        self.docker = docker.DockerClient(base_url=engine_address)
        study = self.settings.data_dir / "studies" / STUDY
        (study / "input").mkdir(parents=True)
        write_record(study, Fingerprint(instance_count=0, columns={}))

    def run(self, definition: FlowDefinition) -> StepResult:
        engine = build_engine(self.settings)
        return engine.run_step(
            definition, step=0, run_id=str(uuid.uuid4()), study_id=STUDY, logger=logging.getLogger("test")
        )

    def container_of(self, run_id: str) -> docker.models.containers.Container | None:
        found = self.docker.containers.list(all=True, filters={"label": f"{RUN_LABEL}={run_id}"}, ignore_removed=True)
        return next(iter(found), None)


@pytest.fixture
def site(tmp_path: Path, engine_address: str) -> Iterator[Site]:
    site = Site(tmp_path, engine_address)
    yield site
    build_engine(site.settings).remove_all_containers()
    site.docker.close()


def flow(script: str, *, gpu: object = True, **docker_kwargs: object) -> FlowDefinition:
    kwargs = {"image": "busybox", "command": ["sh", "-c", script], **docker_kwargs}
    model = {"docker_kwargs": kwargs, "gpu": gpu, "pull_before_exec": False}
    return FlowDefinition.model_validate({"name": "gpu", "triggers": [], "models": [model]})


@contextlib.contextmanager
def when_it_says(message: str, do: Callable[[], None]) -> Iterator[None]:
    """Do something at the moment at which a container's log has ``message``."""

    class Listening(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            if record.getMessage() == message:
                do()

    handler = Listening()
    logging.getLogger("test").addHandler(handler)
    try:
        yield
    finally:
        logging.getLogger("test").removeHandler(handler)


def test_a_container_gets_the_gpus_that_its_step_holds_and_shared_memory(
    site: Site, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    seen: list[dict[str, object]] = []

    def look() -> None:
        seen.extend(site.docker.api.inspect_container(each.id) for each in site.docker.containers.list())

    with when_it_says("sees 0,1", look):
        site.run(flow("echo sees $NVIDIA_VISIBLE_DEVICES; df -m /dev/shm; sleep 0.5", gpu=2, shm_size="256m"))

    [found] = seen
    host, config = found["HostConfig"], found["Config"]
    [request] = host["DeviceRequests"]  # type: ignore[index]
    assert (request["Driver"], request["DeviceIDs"], request["Capabilities"]) == ("", ["0", "1"], [["gpu"]])
    assert host["ShmSize"] == 256 * 2**20  # type: ignore[index]
    assert "NVIDIA_VISIBLE_DEVICES=0,1" in config["Env"]  # type: ignore[index]
    assert config["Labels"][GPUS_LABEL] == "0,1"  # type: ignore[index]
    assert any("256" in message and "/dev/shm" in message for message in caplog.messages)


def test_a_container_of_a_model_without_a_gpu_sees_none(site: Site, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    site.run(flow("echo sees $NVIDIA_VISIBLE_DEVICES", gpu=False))
    assert "sees void" in caplog.messages


def test_a_gpu_that_the_host_does_not_have_is_named(site: Site) -> None:
    site.settings = site.settings.model_copy(update={"gpus": ("7",)})
    with pytest.raises(ContainerRefusedError, match=r"does not know a GPU .*nvidia-smi -L.*unknown device"):
        site.run(flow("true"))


def test_a_model_whose_gpu_is_lost_did_not_fail_and_the_next_attempt_gets_another(
    site: Site, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    nvml = FakeNvml(monkeypatch)

    def lose() -> None:
        nvml.errors["0"] = pynvml.NVML_ERROR_GPU_IS_LOST

    with (
        when_it_says("computes on 0", lose),
        pytest.raises(
            GpuLostError, match=r"model 1 \(busybox\): lost: GPU 0 \(GPU-0: NVML says: .*\); see `nvidia-smi`"
        ),
    ):
        site.run(flow("echo computes on $NVIDIA_VISIBLE_DEVICES; sleep 0.5; exit 1"))
    with pytest.raises(ModelFailedError):
        site.run(flow("echo computes on $NVIDIA_VISIBLE_DEVICES; exit 1"))
    assert "computes on 1" in caplog.messages
    with pytest.raises(GpuLostError):
        site.run(flow("true", gpu=2))


def test_a_gpu_that_is_gone_when_the_container_is_to_start_is_lost(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    site.settings = site.settings.model_copy(update={"gpus": ("7",)})
    nvml = FakeNvml(monkeypatch)
    nvml.count = 8
    as_it_is = DockerRunner._remove

    def losing_the_gpu(runner: DockerRunner, name: str) -> None:
        nvml.count = 7
        as_it_is(runner, name)

    # The first thing that is done to a container comes after its GPUs were found well.
    monkeypatch.setattr(DockerRunner, "_remove", losing_the_gpu)
    with pytest.raises(GpuLostError, match=r"GPU 7 .*not among the GPUs"):
        site.run(flow("true"))


def test_what_a_killed_run_left_on_a_gpu_is_gone_before_the_next_step_starts_on_it(
    site: Site, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    killed = str(uuid.uuid4())
    long = json.dumps(flow("sleep 600", gpu=2).model_dump(mode="json"))
    process = subprocess.Popen([sys.executable, "-c", RUN, long, killed, STUDY], env=site.environment, cwd=ROOT)
    try:
        wait_until(lambda: _runs(site, killed), seconds=30, what="the container of the first run starts")
    finally:
        process.kill()
        process.wait()
    assert _runs(site, killed), "a container does not end with the process that started it"
    left: list[object] = []

    with when_it_says("begins", lambda: left.append(site.container_of(killed))):
        site.run(flow("echo begins; sleep 0.5"))

    assert left == [None]
    assert "removed a container that a dead process had left on GPU 0" in caplog.messages


def test_a_living_run_keeps_its_container_and_its_gpu(site: Site) -> None:
    living = str(uuid.uuid4())
    long = json.dumps(flow("sleep 600").model_dump(mode="json"))
    process = subprocess.Popen([sys.executable, "-c", RUN, long, living, STUDY], env=site.environment, cwd=ROOT)
    try:
        wait_until(lambda: _runs(site, living), seconds=30, what="the container of the first run starts")
        site.run(flow("true"))
        container = site.container_of(living)
        assert container is not None
        assert container.status == "running"
        assert container.labels[GPUS_LABEL] == "0"
        assert (site.settings.data_dir / "locks" / "gpus" / container.labels[LEASE_LABEL]).exists()
    finally:
        process.kill()
        process.wait()


def _runs(site: Site, run_id: str) -> bool:
    container = site.container_of(run_id)
    return container is not None and container.status == "running"
