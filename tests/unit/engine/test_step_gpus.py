"""The GPUs of a step: what is held, what the log says, and which containers have to go first."""

from __future__ import annotations

import errno
import logging
import os
import threading
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from flows_engine.container_spec import GPUS_LABEL, INSTANCE_LABEL, LEASE_LABEL
from flows_engine.definition.schema import Model
from flows_engine.errors import (
    ContainerRefusedError,
    GpuLostError,
    GpuMissingError,
    GpuUnavailableError,
    RetryableError,
)
from flows_engine.gpu_health import Health
from flows_engine.interfaces import ContainerSpec
from flows_engine.step_gpus import StepGpus, orphaned, step_gpus
from tests.fakes.container_runner import FakeContainerRunner

logger = logging.getLogger("test")
TOTAL = {"0": 1000, "1": 1000}
DEAD = "d" * 32


class Host:
    """Lends GPUs 0 and 1, and remembers in ``runner`` what runs."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.runner = FakeContainerRunner({})
        self.health: dict[str, Health] = {}

    def gpus(
        self, *, total: Mapping[str, int] = TOTAL, wait_seconds: float = 0, **model: Any
    ) -> AbstractContextManager[StepGpus]:
        return step_gpus(
            Model.model_validate({"docker_kwargs": {"image": "a"}, **model}),
            gpus=("0", "1"),
            total_mib=lambda _: total,
            health=lambda gpus: {gpu: self.health[gpu] for gpu in gpus if gpu in self.health},
            folder=self.folder,
            lost_folder=self.folder.with_name("lost-gpus"),
            wait_seconds=wait_seconds,
            runner=self.runner,
            instance_id="site",
            logger=logger,
        )

    def has_running(self, name: str, *, gpus: str, lease: str, instance: str = "site") -> None:
        labels = {INSTANCE_LABEL: instance, GPUS_LABEL: gpus, LEASE_LABEL: lease}
        self.runner.running[name] = replace(_SPEC, name=name, labels=labels)


_SPEC = ContainerSpec(name="", image="a", mounts=(), labels={}, timeout_seconds=1, pull=False, network=False)


@pytest.fixture
def host(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> Iterator[Host]:
    caplog.set_level(logging.INFO)
    return Host(tmp_path / "gpus")


def test_a_model_without_a_gpu_holds_none_and_asks_for_nothing(host: Host) -> None:
    with host.gpus() as held:
        assert (held.gpus, held.name) == ((), "")
    assert not host.folder.exists()


def test_small_models_share_a_gpu_and_a_whole_one_is_alone(host: Host) -> None:
    with host.gpus(gpu=True, gpu_memory=400) as first, host.gpus(gpu=True, gpu_memory=400) as second:
        assert first.gpus == second.gpus == ("0",)
        with host.gpus(gpu=True) as third:
            assert third.gpus == ("1",)
            with pytest.raises(GpuUnavailableError):
                host.gpus(gpu=True, gpu_memory=400).__enter__()


def test_where_the_memory_is_not_known_the_whole_gpu_is_held_and_it_is_said_once(
    host: Host, caplog: pytest.LogCaptureFixture
) -> None:
    with host.gpus(gpu=True, gpu_memory=400, total={}) as first, host.gpus(gpu=True, gpu_memory=400, total={}) as other:
        assert {*first.gpus, *other.gpus} == {"0", "1"}
    assert [message for message in caplog.messages if "does not tell the memory of GPU 0, 1" in message] == [
        caplog.messages[0]
    ] * 2


def test_memory_is_asked_for_only_where_it_matters(host: Host, caplog: pytest.LogCaptureFixture) -> None:
    with host.gpus(gpu=2, total={}) as held:
        assert held.gpus == ("0", "1")
    assert caplog.messages == []


@pytest.mark.parametrize("model", [{"gpu": 3}, {"gpu": True, "gpu_memory": 1001}])
def test_what_can_never_be_had_is_not_waited_for(host: Host, model: dict[str, Any]) -> None:
    with pytest.raises(GpuMissingError):
        host.gpus(wait_seconds=600, **model).__enter__()


def test_who_waits_says_so(host: Host, caplog: pytest.LogCaptureFixture) -> None:
    first = host.gpus(gpu=2)
    first.__enter__()
    threading.Timer(0.3, first.__exit__, (None, None, None)).start()
    with host.gpus(gpu=True, wait_seconds=30):
        assert caplog.messages == ["waits for 1 GPU of 0, 1: other steps hold what is missing"]


def test_what_a_dead_process_left_on_a_gpu_is_removed_before_it_is_used(
    host: Host, caplog: pytest.LogCaptureFixture
) -> None:
    host.has_running("orphan", gpus="1,0", lease=DEAD)
    host.has_running("orphan elsewhere", gpus="1", lease=DEAD[1:] + "e")
    host.has_running("of another installation", gpus="0", lease=DEAD[1:] + "f", instance="other")
    with host.gpus(gpu=True) as held:
        assert held.gpus == ("0",)
        assert sorted(host.runner.running) == ["of another installation", "orphan elsewhere"]
    assert caplog.messages == ["removed a container that a dead process had left on GPU 0"]


def test_the_container_of_a_living_sharer_stays(host: Host) -> None:
    with host.gpus(gpu=True, gpu_memory=400) as first:
        host.has_running("living", gpus="0", lease=first.name)
        host.has_running("orphan", gpus="0", lease=DEAD)
        with host.gpus(gpu=True, gpu_memory=400) as second:
            assert second.gpus == ("0",)
            assert list(host.runner.running) == ["living"]
    with host.gpus(gpu=True):
        assert host.runner.running == {}


def test_an_orphan_is_told_by_its_gpus_and_by_its_lease() -> None:
    labels = [
        {},
        {GPUS_LABEL: "0"},
        {GPUS_LABEL: "10", LEASE_LABEL: "ten"},
        {GPUS_LABEL: "0,1", LEASE_LABEL: "dead"},
        {GPUS_LABEL: "0", LEASE_LABEL: "living"},
    ]
    assert orphaned(labels, gpus=["0"], is_held=lambda name: name == "living") == ("dead",)


WELL = Health(uuid="GPU-8f6c")
GONE = Health(wrong="it is not among the GPUs of this host")
LOST = Health(wrong="NVML says: GPU is lost", is_lost=True)


@pytest.mark.parametrize("after", [GONE, LOST, Health(wrong="NVIDIA's driver does not answer within 10 seconds")])
def test_a_gpu_that_was_well_and_is_no_more_is_lost_and_named_with_the_way_out(host: Host, after: Health) -> None:
    host.health = {"0": WELL, "1": WELL}
    with host.gpus(gpu=True) as held:
        assert held.gpus == ("0",)
        held.raise_if_lost()
        host.health["0"] = after
        with pytest.raises(GpuLostError) as caught:
            held.raise_if_lost()
    said = str(caught.value)
    assert all(part in said for part in ("GPU 0", "GPU-8f6c", after.wrong, "nvidia-smi", "take it out of GPUS")), said
    assert "\n" not in said
    assert "GPU 1" not in said
    assert isinstance(caught.value, RetryableError)


def test_a_lost_gpu_is_not_handed_out_until_it_is_well_again(host: Host, caplog: pytest.LogCaptureFixture) -> None:
    host.health = {"0": WELL, "1": WELL}
    with host.gpus(gpu=True) as held:
        host.health["0"] = GONE
        with pytest.raises(GpuLostError):
            held.raise_if_lost()
    with host.gpus(gpu=True) as held:
        assert held.gpus == ("1",)
    assert any("GPU 0" in message and "it is not among" in message for message in caplog.messages)
    with pytest.raises(GpuLostError, match="GPU 0"):
        host.gpus(gpu=2, wait_seconds=600).__enter__()
    host.health["0"] = WELL
    with host.gpus(gpu=True) as held:
        assert held.gpus == ("0",)


@pytest.mark.parametrize("earlier", ["", "NVML says: GPU is lost"])
def test_on_a_full_disk_a_lost_gpu_is_noted_nevertheless(
    host: Host, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch, earlier: str
) -> None:
    def full(path: Path, _: str) -> int:
        path.touch()
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    host.health = {"0": WELL, "1": WELL}
    with host.gpus(gpu=True) as held:
        host.health["0"] = GONE
        if earlier:  # another process that used it has noted it
            with pytest.raises(GpuLostError):
                held.raise_if_lost()
            [note] = host.folder.with_name("lost-gpus").iterdir()
            note.write_text(earlier)
        monkeypatch.setattr(Path, "write_text", full)
        with pytest.raises(GpuLostError):
            held.raise_if_lost()
    assert "that GPU 0 is lost cannot be noted in full: No space left on device" in caplog.messages
    [note] = host.folder.with_name("lost-gpus").iterdir()
    assert note.read_text() == earlier
    caplog.clear()
    with host.gpus(gpu=True) as held:
        assert held.gpus == ("1",)
    assert any(f"GPU 0 ({earlier or 'it was lost while a model used it'}" in message for message in caplog.messages)
    host.health["0"] = WELL
    with host.gpus(gpu=True) as held:
        assert held.gpus == ("0",)


def test_a_model_that_only_a_lost_gpu_could_hold_may_be_retried(host: Host) -> None:
    host.health = {"0": LOST, "1": WELL}
    with pytest.raises(GpuLostError):
        host.gpus(gpu=True, gpu_memory=900, total={"1": 100}).__enter__()
    with pytest.raises(GpuMissingError):
        host.gpus(gpu=3).__enter__()


def test_a_gpu_that_is_lost_while_others_hold_it_is_not_handed_to_who_waits(host: Host) -> None:
    host.health = {"0": WELL, "1": WELL}
    first = host.gpus(gpu=2)
    first.__enter__()

    def lose() -> None:
        host.health["0"] = LOST
        first.__exit__(None, None, None)

    threading.Timer(0.3, lose).start()
    with pytest.raises(GpuLostError, match="GPU 0"):
        host.gpus(gpu=True, wait_seconds=30).__enter__()


def test_a_container_that_is_refused_since_its_gpu_is_lost_may_be_retried(host: Host) -> None:
    def refused(after: Health) -> None:
        host.health = {"0": WELL}
        with host.gpus(gpu=True):
            host.health = {"0": after}
            raise ContainerRefusedError("nvidia-container-cli: device error: 0: unknown device")

    with pytest.raises(GpuLostError):
        refused(LOST)
    host.health = {"0": WELL}
    with pytest.raises(ContainerRefusedError):
        refused(WELL)


@pytest.mark.parametrize("known", [{}, {"0": GONE}, {"0": Health(wrong="NVML says: Driver Not Loaded")}])
def test_a_gpu_that_was_never_known_to_be_well_is_not_lost(host: Host, known: dict[str, Health]) -> None:
    host.health = known
    with host.gpus(gpu=True) as held:
        assert held.gpus == ("0",)
        held.raise_if_lost()
