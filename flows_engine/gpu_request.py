"""GPU ids -> what a Docker engine is asked for, and what a person can do where it refuses. Pure."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

_KIND: Final = "nvidia.com/gpu"
_NO_DRIVER: Final = re.compile(r"could not select device driver|failed to discover GPU vendor")
_NO_DEVICE: Final = re.compile(r"unresolvable CDI devices|unknown device")


@dataclass(frozen=True, kw_only=True)
class GpuRequest:
    """A device request. An empty ``driver`` leaves it to the engine which one has the ``capabilities``."""

    device_ids: tuple[str, ...]
    driver: str = ""
    capabilities: tuple[tuple[str, ...], ...] = ()


def gpu_request(gpu_ids: Sequence[str], *, engine_info: Mapping[str, Any]) -> GpuRequest:
    """Return how an engine that tells ``engine_info`` of itself is asked for the GPUs of ``gpu_ids``.

    The Container Device Interface (CDI) is used where the engine offers it, knows NVIDIA's GPUs by it as far as it
    tells, and has no runtime of NVIDIA's. Everything else is asked for as ``docker run --gpus`` does: that works
    without the runtime, too, and an engine does not tell whether it has what that takes.
    """
    if _has_cdi(engine_info) and "nvidia" not in (engine_info.get("Runtimes") or {}):
        return GpuRequest(driver="cdi", device_ids=tuple(f"{_KIND}={gpu}" for gpu in gpu_ids))
    return GpuRequest(device_ids=tuple(gpu_ids), capabilities=(("gpu",),))


def _has_cdi(engine_info: Mapping[str, Any]) -> bool:
    if not engine_info.get("CDISpecDirs"):
        return False
    # Engines before 28.2 do not list devices; their CDI is off unless somebody has switched it on.
    if _version(engine_info) < (28, 2):
        return True
    listed = engine_info.get("DiscoveredDevices") or ()
    return any(device.get("Source") == "cdi" and device.get("ID", "").startswith(f"{_KIND}=") for device in listed)


def _version(engine_info: Mapping[str, Any]) -> tuple[int, ...]:
    found = re.match(r"(\d+)\.(\d+)", str(engine_info.get("ServerVersion", "")))
    return tuple(map(int, found.groups())) if found else ()


def why_refused(explanation: str) -> str | None:
    """Return what an engine's refusal of a GPU means, with the way out; None where it is about something else."""
    if _NO_DRIVER.search(explanation):
        return (
            "the Docker engine of this host cannot give GPUs to containers: install nvidia-container-toolkit, then"
            " `nvidia-ctk runtime configure --runtime=docker` and `systemctl restart docker`"
        )
    if _NO_DEVICE.search(explanation):
        return (
            "the Docker engine of this host does not know a GPU that GPUS names: `nvidia-smi -L` lists them,"
            f" `nvidia-ctk cdi list` what CDI knows ({explanation})"
        )
    return None
