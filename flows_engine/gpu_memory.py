"""How much memory the GPUs of this host have, as NVIDIA's management library (NVML) tells it."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from typing import Final

import pynvml

_MIB: Final = 2**20


def total_mib(gpus: Sequence[str]) -> dict[str, int]:
    """Return the memory of each of ``gpus`` in MiB, by its id: an index or a UUID, as ``nvidia-smi -L`` shows them.

    A GPU that NVML does not know, or whose memory it cannot tell, is left out; so are all where there is no NVML.
    """
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:
        return {}
    try:
        found: dict[str, int] = {}
        for gpu in gpus:
            with suppress(pynvml.NVMLError):
                handle = (
                    pynvml.nvmlDeviceGetHandleByIndex(int(gpu))
                    if gpu.isdigit()
                    else pynvml.nvmlDeviceGetHandleByUUID(gpu)
                )
                found[gpu] = pynvml.nvmlDeviceGetMemoryInfo(handle).total // _MIB
        return found
    finally:
        pynvml.nvmlShutdown()
