"""The GPUs of one step: leased from this host, rid of what dead processes left on them, and looked at when it fails."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from flows_engine.container_spec import GPUS_LABEL, INSTANCE_LABEL, LEASE_LABEL
from flows_engine.definition.schema import Model
from flows_engine.errors import ContainerRefusedError, GpuLostError, GpuMissingError, ModelTimedOutError
from flows_engine.gpu_choice import Need, need_of
from flows_engine.gpu_health import Health
from flows_engine.gpu_lease import is_held, lease
from flows_engine.interfaces import ContainerRunner
from flows_engine.lost_gpus import LostGpus, in_a_sentence


def _nothing_is_lost() -> None:
    return None


@dataclass(frozen=True, kw_only=True)
class StepGpus:
    """The GPUs that a step holds, by their ids. ``name`` is that of its lease."""

    name: str = ""
    gpus: tuple[str, ...] = ()
    raise_if_lost: Callable[[], None] = _nothing_is_lost
    """For when the model ended badly: raises ``GpuLostError`` where one of its GPUs is lost."""


@contextmanager
def step_gpus(
    model: Model,
    *,
    gpus: Sequence[str],
    total_mib: Callable[[Sequence[str]], Mapping[str, int]],
    health: Callable[[Sequence[str]], Mapping[str, Health]],
    folder: Path,
    lost_folder: Path,
    wait_seconds: float,
    runner: ContainerRunner,
    instance_id: str,
    logger: logging.Logger | logging.LoggerAdapter[logging.Logger],
    is_halted: Callable[[], bool] = lambda: False,
) -> Iterator[StepGpus]:
    """Hold what ``model`` needs of the host's ``gpus`` for the length of the ``with`` block; nothing if it needs none.

    A lease ends with its process, the process's container does not: what still runs on the GPUs under a lease that
    nobody holds is removed before they are handed out. A GPU that is lost is not handed out; a container that the
    engine refuses, or that has to be killed, is the fault of its GPU where that is lost meanwhile. Raises
    ``GpuMissingError``, ``GpuUnavailableError``, ``GpuLostError``, ``RunHaltedError``, and what
    ``ContainerRunner.remove_all`` raises.
    """
    if not model.gpu:
        yield StepGpus()
        return
    losses = LostGpus(folder=lost_folder, health=health, logger=logger)
    lost = losses.among(gpus)
    usable = [gpu for gpu in gpus if gpu not in lost]
    known = total_mib(usable) if model.gpu_memory is not None else {}
    need = _need(model, gpus=usable, total_mib=known, lost=lost)
    if model.gpu_memory is not None and (unknown := [gpu for gpu in usable if gpu not in known]):
        logger.warning(
            "NVIDIA's management library does not tell the memory of GPU %s: gpu_memory has no effect there, the whole"
            " GPU is held",
            ", ".join(unknown),
            extra={"action": "gpu_memory_unknown"},
        )

    if lost:
        logger.warning("%s", in_a_sentence(lost), extra={"action": "gpu_lost"})

    def on_wait() -> None:
        logger.info("waits for %s: other steps hold what is missing", need, extra={"action": "gpu_awaited"})

    with lease(need, folder=folder, wait_seconds=wait_seconds, on_wait=on_wait, is_halted=is_halted) as held:
        found = runner.find_all(label=INSTANCE_LABEL, value=instance_id)
        for name in orphaned(found, gpus=held.gpus, is_held=lambda name: is_held(name, folder=folder)):
            runner.remove_all(label=LEASE_LABEL, value=name)
            logger.warning(
                "removed a container that a dead process had left on GPU %s",
                ", ".join(held.gpus),
                extra={"action": "orphan_removed"},
            )
        # It may have been long in waiting.
        if lost := losses.among(held.gpus):
            raise GpuLostError(in_a_sentence(lost))
        before = losses.well(held.gpus)

        def raise_if_lost() -> None:
            losses.raise_if_lost(held.gpus, before=before)

        try:
            yield StepGpus(name=held.name, gpus=held.gpus, raise_if_lost=raise_if_lost)
        except (ContainerRefusedError, ModelTimedOutError):
            raise_if_lost()
            raise


def _need(model: Model, *, gpus: Sequence[str], total_mib: Mapping[str, int], lost: Mapping[str, str]) -> Need:
    """Return what ``model`` needs of ``gpus``. Where they would not do, that is the fault of those that are lost."""
    try:
        return need_of(model, gpus=gpus, total_mib=total_mib)
    except GpuMissingError as error:
        if lost and model.gpu_count <= len(gpus) + len(lost):
            raise GpuLostError(in_a_sentence(lost)) from error
        raise


def orphaned(
    labels: Iterable[Mapping[str, str]], *, gpus: Sequence[str], is_held: Callable[[str], bool]
) -> tuple[str, ...]:
    """Return the leases, held no more, of containers that use one of ``gpus``, given the labels of all containers."""
    names = {
        each[LEASE_LABEL]
        for each in labels
        if LEASE_LABEL in each and not set(gpus).isdisjoint(each.get(GPUS_LABEL, "").split(","))
    }
    return tuple(sorted(name for name in names if not is_held(name)))
