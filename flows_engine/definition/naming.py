"""The names by which Prefect knows pools, queues, deployments and runs; made here and nowhere else."""

from __future__ import annotations

from typing import Final, Literal

FLOW_NAME: Final = "process-study"
MANAGED_TAG: Final = "dicomflow"
WORKER_TYPE: Final = "dicomflow"
"""The type of our work pools, and of the workers that serve them."""
GONE_TAG: Final = "definition-gone"
"""On a deployment whose definition is gone, and on those of its runs that waited then."""
PRIORITIES: Final = range(6)
# On a run that is to take the place of another in another queue, and does not yet: no worker takes it.
MOVING_TAG: Final = "moving"
_PRIORITY_TAG: Final = "priority:"

Gpu = bool | str


def work_pool(gpus: tuple[Gpu, ...]) -> str:
    """Return the pool for a flow whose models need ``gpus``: ``cpu``, ``gpu`` or ``gpu-<kind>``.

    A named kind wins over a plain ``true``: the worker that has that kind can serve both.
    """
    kinds = sorted({gpu for gpu in gpus if isinstance(gpu, str)})
    if kinds:
        return f"gpu-{kinds[0]}"
    return "gpu" if any(gpus) else "cpu"


def work_queue(priority: int) -> str:
    """Return the queue for a flow of ``priority`` 0 (last) to 5 (first)."""
    return f"priority-{priority}"


def priority_of(queue: str) -> int | None:
    """Return the priority whose runs wait in ``queue``; None where it is no such queue."""
    return next((priority for priority in PRIORITIES if work_queue(priority) == queue), None)


def queue_priority(priority: int) -> int:
    """Return Prefect's number for our ``priority``: Prefect's 1 is the highest, our 5 is."""
    return PRIORITIES.stop - priority


def deployment(definition_name: str) -> str:
    """Return the full name that ``prefect deployment run`` takes."""
    return f"{FLOW_NAME}/{definition_name}"


def study_tag(study_id: str) -> str:
    """Return the tag by which all runs of one study are found."""
    return f"study:{study_id}"


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


Reason = Literal["received", "reprocess"]
