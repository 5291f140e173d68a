"""The GPUs of one step: leased from this host, and rid of containers that dead processes left on them."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from flows_engine.container_spec import GPUS_LABEL, INSTANCE_LABEL, LEASE_LABEL
from flows_engine.definition.schema import Model
from flows_engine.gpu_choice import need_of
from flows_engine.gpu_lease import Lease, is_held, lease
from flows_engine.interfaces import ContainerRunner

_NONE = Lease(name="", gpus=())


@contextmanager
def step_gpus(
    model: Model,
    *,
    gpus: Sequence[str],
    total_mib: Callable[[Sequence[str]], Mapping[str, int]],
    folder: Path,
    wait_seconds: float,
    runner: ContainerRunner,
    instance_id: str,
    logger: logging.Logger | logging.LoggerAdapter[logging.Logger],
    is_halted: Callable[[], bool] = lambda: False,
) -> Iterator[Lease]:
    """Hold what ``model`` needs of the host's ``gpus`` for the length of the ``with`` block; nothing if it needs none.

    A lease ends with its process, the process's container does not: what still runs on the GPUs under a lease that
    nobody holds is removed before they are handed out. Raises ``GpuMissingError``, ``GpuUnavailableError``,
    ``RunHaltedError``, and what ``ContainerRunner.remove_all`` raises.
    """
    if not model.gpu:
        yield _NONE
        return
    known = total_mib(gpus) if model.gpu_memory is not None else {}
    need = need_of(model, gpus=gpus, total_mib=known)
    if model.gpu_memory is not None and (unknown := [gpu for gpu in gpus if gpu not in known]):
        logger.warning(
            "NVIDIA's management library does not tell the memory of GPU %s: gpu_memory has no effect there, the whole"
            " GPU is held",
            ", ".join(unknown),
            extra={"action": "gpu_memory_unknown"},
        )

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
        yield held


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
