"""The GPUs of a step: what is held, what the log says, and which containers have to go first."""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from flows_engine.container_spec import GPUS_LABEL, INSTANCE_LABEL, LEASE_LABEL
from flows_engine.definition.schema import Model
from flows_engine.errors import GpuMissingError, GpuUnavailableError
from flows_engine.gpu_lease import Lease
from flows_engine.interfaces import ContainerSpec
from flows_engine.step_gpus import orphaned, step_gpus
from tests.fakes.container_runner import FakeContainerRunner

logger = logging.getLogger("test")
TOTAL = {"0": 1000, "1": 1000}
DEAD = "d" * 32


class Host:
    """Lends GPUs 0 and 1, and remembers in ``runner`` what runs."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.runner = FakeContainerRunner({})

    def gpus(
        self, *, total: Mapping[str, int] = TOTAL, wait_seconds: float = 0, **model: Any
    ) -> AbstractContextManager[Lease]:
        return step_gpus(
            Model.model_validate({"docker_kwargs": {"image": "a"}, **model}),
            gpus=("0", "1"),
            total_mib=lambda _: total,
            folder=self.folder,
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
