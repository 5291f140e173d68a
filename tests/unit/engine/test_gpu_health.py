"""How GPUs are, as far as NVML tells."""

from __future__ import annotations

import pynvml
import pytest

from flows_engine import gpu_health
from flows_engine.gpu_health import Health, health
from tests.fakes.nvml import FakeNvml


@pytest.fixture
def nvml(monkeypatch: pytest.MonkeyPatch) -> FakeNvml:
    return FakeNvml(monkeypatch)


def test_gpus_that_answer_are_well_by_index_and_by_uuid(nvml: FakeNvml) -> None:
    assert health(["0", "GPU-1"]) == {"0": Health(uuid="GPU-0"), "GPU-1": Health(uuid="GPU-1")}
    assert nvml.open == 0


@pytest.mark.parametrize("code", [pynvml.NVML_ERROR_GPU_IS_LOST, pynvml.NVML_ERROR_RESET_REQUIRED])
def test_a_gpu_that_fell_off_its_bus_is_lost_whatever_is_asked_of_it(nvml: FakeNvml, code: int) -> None:
    nvml.errors, nvml.memory_errors = {"0": code}, {"1": code}
    found = health(["0", "1"])
    assert all(each.is_lost and each.wrong.startswith("NVML says: ") for each in found.values())
    assert found["1"].uuid == "GPU-1"


def test_a_gpu_that_nvml_does_not_know_may_never_have_been_there(nvml: FakeNvml) -> None:
    found = health(["7", "GPU-7", "0"])
    assert found["7"] == found["GPU-7"] == Health(wrong="it is not among the GPUs of this host")
    assert found["0"] == Health(uuid="GPU-0")


def test_what_cannot_be_told_of_a_gpu_is_nothing_wrong_with_it(nvml: FakeNvml) -> None:
    nvml.memory_errors = {"0": pynvml.NVML_ERROR_NOT_SUPPORTED}
    assert health(["0"]) == {"0": Health(uuid="GPU-0")}


def test_where_there_is_no_nvml_nothing_is_known(nvml: FakeNvml) -> None:
    nvml.start_error = pynvml.NVML_ERROR_LIBRARY_NOT_FOUND
    assert health(["0"]) == {}


def test_a_driver_that_is_gone_is_wrong_with_every_gpu(nvml: FakeNvml) -> None:
    nvml.start_error = pynvml.NVML_ERROR_DRIVER_NOT_LOADED
    assert [(each.is_lost, bool(each.wrong)) for each in health(["0", "1"]).values()] == [(False, True)] * 2


def test_a_driver_that_does_not_answer_is_not_waited_for(nvml: FakeNvml, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu_health, "_PATIENCE_SECONDS", 0.1)
    nvml.hangs_seconds = 0.5
    assert health(["0"]) == {"0": Health(wrong="NVIDIA's driver does not answer within 0.1 seconds")}
