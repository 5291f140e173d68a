"""GPUs of this host that were lost while a model used them: noted, and not handed out until they are well again.

A note outlives the process that made it. A lost GPU may be one that NVML does not know any more, or be lost together
with the driver that would tell; without a note it could not be told from one that never was there.
"""

from __future__ import annotations

import hashlib
import logging
import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from flows_engine.errors import GpuLostError
from flows_engine.gpu_health import Health

_NO_REASON: Final = "it was lost while a model used it; there was no room to note how"


@dataclass(frozen=True, kw_only=True)
class LostGpus:
    """What is known of lost GPUs, in ``folder``, which all processes of the host share."""

    folder: Path
    health: Callable[[Sequence[str]], Mapping[str, Health]]
    """Tells how GPUs are; nothing where that cannot be known."""
    logger: logging.Logger | logging.LoggerAdapter[logging.Logger]

    def among(self, gpus: Sequence[str]) -> dict[str, str]:
        """Return those of ``gpus`` that are lost, and in a few words why."""
        found = self.health(gpus)
        return {gpu: why for gpu in gpus if (why := self._why_lost(gpu, found.get(gpu)))}

    def well(self, gpus: Sequence[str]) -> dict[str, Health]:
        """Return those of ``gpus`` that are certainly there and well."""
        return {gpu: found for gpu, found in self.health(gpus).items() if not found.wrong}

    def raise_if_lost(self, gpus: Sequence[str], *, before: Mapping[str, Health]) -> None:
        """Raise ``GpuLostError`` where one of ``gpus`` is lost, and note it. ``before`` are those that were well."""
        lost = {}
        for gpu, found in self.health(gpus).items():
            if found.wrong and (found.is_lost or gpu in before):
                uuid = found.uuid or (before[gpu].uuid if gpu in before else "")
                lost[gpu] = f"{uuid}: {found.wrong}" if uuid and uuid != gpu else found.wrong
        for gpu, why in lost.items():
            self._note(gpu, why)
        if lost:
            raise GpuLostError(in_a_sentence(lost))

    def _why_lost(self, gpu: str, found: Health | None) -> str:
        note = self._path(gpu)
        if found is not None and not found.wrong:
            note.unlink(missing_ok=True)
            return ""
        if found is not None and found.is_lost:
            return f"{found.uuid}: {found.wrong}" if found.uuid and found.uuid != gpu else found.wrong
        try:
            return (note.read_text() or _NO_REASON) if found is not None else ""
        except OSError:
            return ""

    def _note(self, gpu: str, why: str) -> None:
        note = self._path(gpu)
        unfinished = note.with_suffix(f".{os.getpid()}")
        try:
            self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            # A full disk often has room for an empty file still, and that says the most of it.
            note.touch(mode=0o600)
            unfinished.write_text(why)
            unfinished.replace(note)
        except OSError as error:
            with suppress(OSError):
                unfinished.unlink(missing_ok=True)
            self.logger.warning("that GPU %s is lost cannot be noted in full: %s", gpu, error.strerror)

    def _path(self, gpu: str) -> Path:
        # An id is whatever a site has set.
        return self.folder / hashlib.sha256(gpu.encode()).hexdigest()[:32]


def in_a_sentence(lost: Mapping[str, str]) -> str:
    """Return what a person is told of lost GPUs, each with the reason, and the way out."""
    which = ", ".join(f"GPU {gpu} ({why})" for gpu, why in lost.items())
    return (
        f"lost: {which}; see `nvidia-smi` and `dmesg | grep -i xid`, then reset it (`nvidia-smi --gpu-reset -i <id>`)"
        " or restart the host, or take it out of GPUS; it is not handed out until NVML finds it well"
    )
