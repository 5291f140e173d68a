"""The names by which Prefect knows pools, queues, deployments and runs; made here and nowhere else."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final, Literal

FLOW_NAME: Final = "process-study"
REPROCESS_FLOW_NAME: Final = "reprocess"
REPROCESS_DEPLOYMENT_NAME: Final = "study"
GATEWAY_POOL: Final = "gateway"
"""Where runs wait that need the gateway's own disk, and no model."""
BACKGROUND_QUEUE: Final = "background"
"""Where runs wait that nobody waits for: behind every priority."""
PREFECTS_OWN_QUEUE: Final = "default"
MANAGED_TAG: Final = "dicomflow"
WORKER_TYPE: Final = "dicomflow"
"""The type of our work pools, and of the workers that serve them."""
GONE_TAG: Final = "definition-gone"
"""On a deployment whose definition is gone, and on those of its runs that waited then."""
HOST_LOST: Final = "HostLost"
"""The name of the state, of the type CRASHED, of a run of which nothing is heard any more."""
PRIORITIES: Final = range(6)
# On a run that is to take the place of another in another queue, and does not yet: no worker takes it.
MOVING_TAG: Final = "moving"
_PRIORITY_TAG: Final = "priority:"
_STUDY_TAG: Final = "study:"

Gpu = bool | int | str
"""What a model says of GPUs: whether it needs one, how many (two or more), or of which kind one."""


def work_pool(gpus: tuple[Gpu, ...]) -> str:
    """Return the pool for a flow whose models need ``gpus``: ``cpu``, ``gpu`` or ``gpu-<kind>``.

    A named kind wins over a plain ``true``: the worker that has that kind can serve both.
    """
    kinds = sorted({gpu for gpu in gpus if isinstance(gpu, str)})
    if kinds:
        return f"gpu-{kinds[0]}"
    return "gpu" if any(gpus) else "cpu"


def gpu_pools(kind: str | None) -> tuple[str, ...]:
    """Return the pools whose flows a host can run that has GPUs of ``kind``, or of none in particular."""
    return ("gpu",) if kind is None else ("gpu", work_pool((kind,)))


def work_queue(priority: int) -> str:
    """Return the queue for a flow of ``priority`` 0 (last) to 5 (first)."""
    return f"priority-{priority}"


def priority_of(queue: str) -> int | None:
    """Return the priority whose runs wait in ``queue``; None where it is no such queue."""
    return next((priority for priority in PRIORITIES if work_queue(priority) == queue), None)


def queue_priority(priority: int) -> int:
    """Return Prefect's number for our ``priority``: Prefect's 1 is the highest, our 5 is."""
    return PRIORITIES.stop - priority


def queues(pool: str) -> dict[str, int]:
    """Return the queues that we make in ``pool`` with Prefect's numbers for them, the one that is served first at the
    front.
    """
    if pool == GATEWAY_POOL:
        return {}
    by_priority = {work_queue(priority): queue_priority(priority) for priority in reversed(PRIORITIES)}
    return {**by_priority, BACKGROUND_QUEUE: len(by_priority) + 1}


def last_queue(pool: str) -> str:
    """Return the queue that is made last in ``pool``: the pool is whole when it is there."""
    return next(reversed(queues(pool)), PREFECTS_OWN_QUEUE)


def deployment(definition_name: str) -> str:
    """Return the full name that ``prefect deployment run`` takes."""
    return f"{FLOW_NAME}/{definition_name}"


def run_name(definition_name: str, study_id: str) -> str:
    """Return the name of every run of one flow on one study."""
    return f"{definition_name} {study_id}"


def study_tag(study_id: str) -> str:
    """Return the tag by which all runs of one study are found."""
    return f"{_STUDY_TAG}{study_id}"


def study_tags(tags: Iterable[str]) -> list[str]:
    """Return those of a run's tags that say which study it is on."""
    return [tag for tag in tags if tag.startswith(_STUDY_TAG)]


def priority_tag(priority: int) -> str:
    """Return the tag by which a run shows its priority."""
    return f"{_PRIORITY_TAG}{priority}"


def is_priority_tag(tag: str) -> bool:
    """Tell whether ``tag`` is that of some priority."""
    return tag.startswith(_PRIORITY_TAG)


def instance_tag(instance_id: str) -> str:
    """Return the tag by which an installation knows the deployments that it made."""
    return f"instance:{instance_id}"


def definition_tags(*, version: str, priority: int) -> list[str]:
    """Return the tags that a deployment and its runs carry."""
    tags = [MANAGED_TAG, priority_tag(priority)]
    return [*tags, f"version:{version}"] if version else tags


Reason = Literal["received", "late-arrival", "reprocess"]


def reason_tag(reason: Reason) -> str:
    """Return the tag by which runs are found that were made for ``reason``."""
    return f"reason:{reason}"


def request_tag(request_id: str) -> str:
    """Return the tag of all runs that one request for reprocessing made; it is named by its own run's id."""
    return f"{REPROCESS_FLOW_NAME}:{request_id}"
