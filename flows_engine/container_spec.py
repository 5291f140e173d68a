"""Model + folders -> what a container runner is told: image, mounts, environment, GPU, limits. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from flows_engine.definition.docker_kwargs import DockerKwargs
from flows_engine.definition.schema import CONFIG_FOLDER, FlowDefinition
from flows_engine.interfaces import BindMount, ContainerSpec
from flows_engine.workspace import StepFolders

RUN_LABEL: Final = "dicomflow.run"
STUDY_LABEL: Final = "dicomflow.study"
STEP_LABEL: Final = "dicomflow.step"
TASK_LABEL: Final = "dicomflow.task"
INSTANCE_LABEL: Final = "dicomflow.instance"
GPUS_LABEL: Final = "dicomflow.gpus"
"""The ids of the GPUs that a container uses, with commas between them."""
LEASE_LABEL: Final = "dicomflow.lease"
"""The name of the lease under which it uses them."""

_NO_NEW_PRIVILEGES: Final = "no-new-privileges"
_PIDS_LIMIT: Final = 4096
_LOG_CONFIG: Final[Mapping[str, object]] = {"type": "json-file", "config": {"max-size": "10m", "max-file": "2"}}


@dataclass(frozen=True, kw_only=True)
class Origin:
    """Whose container it is: the ids that its name, labels and environment carry. All are opaque."""

    run_id: str
    study_id: str
    instance_id: str
    """Names the ``DATA_DIR``, so that two installations on one engine leave each other's containers alone."""


def task_label(run_id: str, step: int) -> str:
    """Return what names one model of one run, whichever attempt it is."""
    return f"{run_id}/{step + 1}"


def container_spec(
    definition: FlowDefinition,
    *,
    step: int,
    folders: StepFolders,
    origin: Origin,
    gpu_ids: Sequence[str] = (),
    gpu_lease: str = "",
    static_mounts: Sequence[BindMount] = (),
    default_mem_limit: str | None = None,
) -> ContainerSpec:
    """Return what runs model number ``step`` (counted from 0) of ``definition``.

    The container sees its inputs read-only unless the model has ``input_writable`` (they are copies then),
    has no network unless the flow says ``network_disabled: false``, cannot gain privileges unless it asks for them
    where its site allows that, and cannot fill the disk with its log. ``gpu_lease`` names the lease by which the step
    holds ``gpu_ids``; ``default_mem_limit`` is the memory that it may take where the flow says nothing of it.
    """
    model, places = definition.models[step], definition.graph.steps[step]
    given = model.docker_kwargs
    environment = {
        **given.environment,
        "DICOMFLOW_STUDY": origin.study_id,
        "DICOMFLOW_RUN": origin.run_id,
        "DICOMFLOW_FLOW": definition.name,
        "DICOMFLOW_VERSION": definition.version,
        # Where NVIDIA's runtime is the default one, an image's own NVIDIA_VISIBLE_DEVICES=all would show it every GPU.
        "NVIDIA_VISIBLE_DEVICES": ",".join(gpu_ids) or "void",
    }
    return ContainerSpec(
        name=f"dicomflow-{origin.run_id}-{step + 1}",
        image=given.image,
        mounts=(
            *(
                BindMount(source=folders.inputs[name], target=place, read_only=not model.input_writable, is_kept=False)
                for name, place in places.reads.items()
            ),
            *(
                BindMount(source=folders.outputs[name], target=place, read_only=False)
                for name, place in places.writes.items()
            ),
            *([BindMount(source=folders.config, target=CONFIG_FOLDER, read_only=True)] if folders.config else ()),
            *static_mounts,
        ),
        labels={
            **given.labels,
            RUN_LABEL: origin.run_id,
            STUDY_LABEL: origin.study_id,
            STEP_LABEL: str(step + 1),
            TASK_LABEL: task_label(origin.run_id, step),
            INSTANCE_LABEL: origin.instance_id,
            **({GPUS_LABEL: ",".join(gpu_ids), LEASE_LABEL: gpu_lease} if gpu_ids else {}),
        },
        timeout_seconds=model.timeout,
        pull=model.pull_before_exec,
        network=not given.network_disabled,
        gpu_ids=tuple(gpu_ids),
        options={
            "pids_limit": _PIDS_LIMIT,
            "log_config": dict(_LOG_CONFIG),
            **({"mem_limit": default_mem_limit} if default_mem_limit else {}),
            **{key: value for key, value in given.create_options().items() if key != "labels"},
            "environment": environment,
            "security_opt": _security(given),
        },
    )


def _security(given: DockerKwargs) -> list[str]:
    """Return the options of a container's security: it cannot gain privileges, unless it has or asks for them."""
    asked = list(given.security_opt or ())
    if given.privileged or any(option.startswith(_NO_NEW_PRIVILEGES) for option in asked):
        return asked
    return [*asked, _NO_NEW_PRIVILEGES]
