"""A stand-in for NVIDIA's management library, put in the place of pynvml's functions."""

from __future__ import annotations

import time
from types import SimpleNamespace

import pynvml
import pytest


class FakeNvml:
    """``count`` GPUs, 0 and 1 at first. ``errors`` has what is said of a GPU, by the index or UUID it is asked by."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.open = 0
        self.count = 2
        self.start_error: int | None = None
        self.hangs_seconds = 0.0
        self.errors: dict[str, int] = {}
        self.memory_errors: dict[str, int] = {}
        for name in (name for name in dir(self) if name.startswith("nvml")):
            patch.setattr(pynvml, name, getattr(self, name))

    def nvmlInit(self) -> None:  # noqa: N802 - NVML's name
        time.sleep(self.hangs_seconds)
        if self.start_error is not None:
            raise pynvml.NVMLError(self.start_error)
        self.open += 1

    def nvmlShutdown(self) -> None:  # noqa: N802 - NVML's name
        self.open -= 1

    def nvmlDeviceGetHandleByIndex(self, index: int) -> str:  # noqa: N802 - NVML's name
        if index >= self.count:
            raise pynvml.NVMLError(pynvml.NVML_ERROR_INVALID_ARGUMENT)
        return self._handle(str(index))

    def nvmlDeviceGetHandleByUUID(self, uuid: str) -> str:  # noqa: N802 - NVML's name
        if uuid not in ("GPU-0", "GPU-1"):
            raise pynvml.NVMLError(pynvml.NVML_ERROR_NOT_FOUND)
        return self._handle(uuid)

    def nvmlDeviceGetUUID(self, handle: str) -> str:  # noqa: N802 - NVML's name
        return f"GPU-{handle.removeprefix('GPU-')}"

    def nvmlDeviceGetMemoryInfo(self, handle: str) -> SimpleNamespace:  # noqa: N802 - NVML's name
        if handle in self.memory_errors:
            raise pynvml.NVMLError(self.memory_errors[handle])
        return SimpleNamespace(total=81_559 * 2**20)

    def _handle(self, gpu: str) -> str:
        if gpu in self.errors:
            raise pynvml.NVMLError(self.errors[gpu])
        return gpu
