"""NVML as far as it is there: on most machines that run this it is not."""

from __future__ import annotations

from types import SimpleNamespace

import pynvml
import pytest

from flows_engine.gpu_memory import total_mib


class Nvml:
    """GPU 0, and one that is known by its UUID; GPU 1 does not tell its memory."""

    def __init__(self) -> None:
        self.open = 0

    def nvmlInit(self) -> None:  # noqa: N802 - NVML's name
        self.open += 1

    def nvmlShutdown(self) -> None:  # noqa: N802 - NVML's name
        self.open -= 1

    def nvmlDeviceGetHandleByIndex(self, index: int) -> str:  # noqa: N802 - NVML's name
        if index > 1:
            raise pynvml.NVMLError(pynvml.NVML_ERROR_INVALID_ARGUMENT)
        return str(index)

    def nvmlDeviceGetHandleByUUID(self, uuid: str) -> str:  # noqa: N802 - NVML's name
        if uuid != "GPU-8f6c":
            raise pynvml.NVMLError(pynvml.NVML_ERROR_NOT_FOUND)
        return uuid

    def nvmlDeviceGetMemoryInfo(self, handle: str) -> SimpleNamespace:  # noqa: N802 - NVML's name
        if handle == "1":
            raise pynvml.NVMLError(pynvml.NVML_ERROR_NOT_SUPPORTED)
        return SimpleNamespace(total=81_559 * 2**20 + 1)


def test_it_is_told_in_mib_of_those_that_are_known(monkeypatch: pytest.MonkeyPatch) -> None:
    nvml = Nvml()
    for name in (name for name in dir(nvml) if name.startswith("nvml")):
        monkeypatch.setattr(pynvml, name, getattr(nvml, name))

    assert total_mib(["0", "1", "7", "GPU-8f6c", "GPU-0000"]) == {"0": 81_559, "GPU-8f6c": 81_559}
    assert nvml.open == 0


def test_without_the_library_nothing_is_known(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing() -> None:
        raise pynvml.NVMLError(pynvml.NVML_ERROR_LIBRARY_NOT_FOUND)

    monkeypatch.setattr(pynvml, "nvmlInit", missing)

    assert total_mib(["0"]) == {}
