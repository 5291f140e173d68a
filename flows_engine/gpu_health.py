"""Whether the GPUs of this host are well, as NVIDIA's management library (NVML) tells it."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Final

import pynvml

_PATIENCE_SECONDS: Final = 10.0
# Where the library is not, or is not for us, nothing is known; every other error at its start is the driver's.
_NO_NVML: Final = (
    pynvml.NVML_ERROR_LIBRARY_NOT_FOUND,
    pynvml.NVML_ERROR_FUNCTION_NOT_FOUND,
    pynvml.NVML_ERROR_NO_PERMISSION,
)
_NOT_THERE: Final = (pynvml.NVML_ERROR_INVALID_ARGUMENT, pynvml.NVML_ERROR_NOT_FOUND)
# What NVML says of a GPU that it knows, and that works no more.
_LOST: Final = (pynvml.NVML_ERROR_GPU_IS_LOST, pynvml.NVML_ERROR_RESET_REQUIRED)
# It cannot tell what is asked, which says nothing of the GPU.
_WELL: Final = (pynvml.NVML_ERROR_NOT_SUPPORTED, pynvml.NVML_ERROR_NO_PERMISSION)


@dataclass(frozen=True, kw_only=True)
class Health:
    """How a GPU is: well, or what is ``wrong`` with it."""

    uuid: str = ""
    wrong: str = ""
    is_lost: bool = False
    """Whether it certainly was there and works no more; else what is wrong may have been so from the beginning."""


def health(gpus: Sequence[str]) -> dict[str, Health]:
    """Return how each of ``gpus`` is, by its id: an index or a UUID. None of them is there where there is no NVML.

    A driver that does not answer within ten seconds counts as wrong with every GPU.
    """
    found: dict[str, Health] = {}
    # A thread, because a driver whose GPU fell off the bus may keep who asks for ever.
    asking = threading.Thread(target=lambda: found.update(_asked(gpus)), daemon=True)
    asking.start()
    asking.join(_PATIENCE_SECONDS)
    if asking.is_alive():
        wrong = f"NVIDIA's driver does not answer within {_PATIENCE_SECONDS:g} seconds"
        return {gpu: Health(wrong=wrong) for gpu in gpus}
    return found


def _asked(gpus: Sequence[str]) -> dict[str, Health]:
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError as error:
        if error.value in _NO_NVML:
            return {}
        return {gpu: Health(wrong=_said(error), is_lost=error.value in _LOST) for gpu in gpus}
    try:
        return {gpu: _one(gpu) for gpu in gpus}
    finally:
        with suppress(pynvml.NVMLError):
            pynvml.nvmlShutdown()


def _one(gpu: str) -> Health:
    try:
        handle = pynvml.nvmlDeviceGetHandleByIndex(int(gpu)) if gpu.isdigit() else pynvml.nvmlDeviceGetHandleByUUID(gpu)
    except pynvml.NVMLError as error:
        wrong = "it is not among the GPUs of this host" if error.value in _NOT_THERE else _said(error)
        return Health(wrong=wrong, is_lost=error.value in _LOST)
    uuid = ""
    with suppress(pynvml.NVMLError):
        uuid = str(pynvml.nvmlDeviceGetUUID(handle))
    try:
        # What a lost GPU cannot answer.
        pynvml.nvmlDeviceGetMemoryInfo(handle)
    except pynvml.NVMLError as error:
        if error.value not in _WELL:
            return Health(uuid=uuid, wrong=_said(error), is_lost=error.value in _LOST)
    return Health(uuid=uuid)


def _said(error: pynvml.NVMLError) -> str:
    return f"NVML says: {error}"
