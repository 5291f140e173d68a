"""What an engine is asked for, by what it tells of itself; and what its refusals mean."""

from __future__ import annotations

from typing import Any

import pytest

from flows_engine.gpu_request import GpuRequest, gpu_request, why_refused

RUNC = {"runc": {"path": "runc"}}
NVIDIA = {**RUNC, "nvidia": {"path": "nvidia-container-runtime"}}
SPEC_DIRS = ["/etc/cdi", "/var/run/cdi"]
LISTED = [{"Source": "cdi", "ID": "nvidia.com/gpu=0"}, {"Source": "cdi", "ID": "nvidia.com/gpu=all"}]

BY_CAPABILITY = GpuRequest(device_ids=("0", "GPU-8f"), capabilities=(("gpu",),))
BY_CDI = GpuRequest(driver="cdi", device_ids=("nvidia.com/gpu=0", "nvidia.com/gpu=GPU-8f"))


@pytest.mark.parametrize(
    ("info", "request_"),
    [
        ({}, BY_CAPABILITY),
        ({"ServerVersion": "20.10.24+dfsg1", "Runtimes": RUNC, "CDISpecDirs": None}, BY_CAPABILITY),
        ({"ServerVersion": "20.10.24", "Runtimes": NVIDIA}, BY_CAPABILITY),
        # CDI is switched off.
        ({"ServerVersion": "27.5.1", "Runtimes": RUNC, "CDISpecDirs": []}, BY_CAPABILITY),
        # Somebody has switched it on.
        ({"ServerVersion": "27.5.1", "Runtimes": RUNC, "CDISpecDirs": SPEC_DIRS}, BY_CDI),
        ({"ServerVersion": "27.5.1", "Runtimes": NVIDIA, "CDISpecDirs": SPEC_DIRS}, BY_CAPABILITY),
        # It is on by default, and tells what it knows.
        ({"ServerVersion": "28.3.0", "Runtimes": RUNC, "CDISpecDirs": SPEC_DIRS}, BY_CAPABILITY),
        (
            {"ServerVersion": "28.3.0", "Runtimes": RUNC, "CDISpecDirs": SPEC_DIRS, "DiscoveredDevices": LISTED},
            BY_CDI,
        ),
        (
            {"ServerVersion": "29.0.1", "Runtimes": NVIDIA, "CDISpecDirs": SPEC_DIRS, "DiscoveredDevices": LISTED},
            BY_CAPABILITY,
        ),
        (
            {
                "ServerVersion": "29.0.1",
                "Runtimes": RUNC,
                "CDISpecDirs": SPEC_DIRS,
                "DiscoveredDevices": [{"Source": "cdi", "ID": "vendor.example/net=0"}],
            },
            BY_CAPABILITY,
        ),
    ],
)
def test_cdi_is_used_where_it_is_offered_and_nvidias_runtime_is_not_there(
    info: dict[str, Any], request_: GpuRequest
) -> None:
    assert gpu_request(["0", "GPU-8f"], engine_info=info) == request_


@pytest.mark.parametrize(
    "said",
    [
        'could not select device driver "" with capabilities: [[gpu]]',
        'could not select device driver "cdi" with capabilities: []',
        "failed to discover GPU vendor from CDI: no known GPU vendor found",
    ],
)
def test_an_engine_without_gpus_needs_the_toolkit(said: str) -> None:
    why = why_refused(said) or ""
    assert "install nvidia-container-toolkit" in why
    assert "nvidia-ctk runtime configure" in why


@pytest.mark.parametrize(
    "said",
    [
        "CDI device injection failed: unresolvable CDI devices nvidia.com/gpu=7",
        "error running hook #0: nvidia-container-cli: device error: 7: unknown device",
    ],
)
def test_a_gpu_that_is_not_there_is_named(said: str) -> None:
    why = why_refused(said) or ""
    assert "nvidia-smi -L" in why
    assert said in why


def test_other_refusals_are_the_engines_own_words() -> None:
    assert why_refused('exec: "no-such-command": executable file not found in $PATH') is None
