"""One model of a flow, from its folders to its exit code."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from pydantic import BaseModel, ConfigDict

from flows_engine.container_spec import RUN_LABEL, Origin, container_spec
from flows_engine.definition.schema import FlowDefinition
from flows_engine.errors import EngineError, ModelFailedError
from flows_engine.gpu_memory import total_mib
from flows_engine.interfaces import ContainerResult, ContainerRunner
from flows_engine.output_files import output_files
from flows_engine.static_mounts import StaticMounts
from flows_engine.step_gpus import step_gpus
from flows_engine.workspace import Workspace

_MAX_REASON: Final = 300


class StepResult(BaseModel):
    """What a model left, and how it ran. Holds nothing of the patient, so that Prefect may keep it."""

    model_config = ConfigDict(frozen=True)

    output_dir: str
    file_count: int
    exit_code: int
    image_digest: str
    duration_seconds: float
    started_at: float = 0.0
    """In seconds since 1970. Tells this result from that of the same step run again; 0 where it was kept earlier."""


@dataclass(frozen=True, kw_only=True)
class Host:
    """What this host lends to a step. ``gpu_total_mib`` tells the memory of those GPUs for which it is known."""

    gpus: Sequence[str]
    gpu_folder: Path
    gpu_wait_seconds: float
    static_mounts: StaticMounts
    gpu_total_mib: Callable[[Sequence[str]], Mapping[str, int]] = total_mib


def run_step(
    definition: FlowDefinition,
    *,
    step: int,
    source: Path,
    origin: Origin,
    workspace: Workspace,
    host: Host,
    runner: ContainerRunner,
    redact: Callable[[str], str],
    logger: logging.Logger | logging.LoggerAdapter[logging.Logger],
) -> StepResult:
    """Run model number ``step`` (counted from 0) on the files in ``source``.

    The container's log goes to ``logger``, line by line as it comes, without the patient. Raises what
    ``ContainerRunner`` raises, ``GpuMissingError``, ``GpuUnavailableError``, ``StaticMountError``, ``WorkspaceError``,
    and ``ModelFailedError`` for an exit code that is not 0; each message begins with the number and the image of the
    model.
    """
    model = definition.models[step]
    title = f"model {step + 1} ({model.docker_kwargs.image})"
    try:
        # A process that was killed leaves its container running, which would write into the folders of this attempt.
        runner.remove_all(label=RUN_LABEL, value=origin.run_id)
        folders = workspace.prepare(step, source=source, copy_input=model.input_writable)
        with step_gpus(
            model,
            gpus=host.gpus,
            total_mib=host.gpu_total_mib,
            folder=host.gpu_folder,
            wait_seconds=host.gpu_wait_seconds,
            runner=runner,
            instance_id=origin.instance_id,
            logger=logger,
        ) as held:
            spec = container_spec(
                definition,
                step=step,
                folders=folders,
                origin=origin,
                gpu_ids=held.gpus,
                gpu_lease=held.name,
                static_mounts=host.static_mounts.resolve(model.static_mounts),
            )
            logger.info("%s starts", title, extra={"action": "model_started"})
            result = runner.run(spec, on_line=lambda line: logger.info("%s", redact(line)), on_notice=logger.warning)
        workspace.open_for_reading(step)
        found = output_files(folders.output)
    except EngineError as error:
        raise type(error)(f"{title}: {error}") from error
    if result.exit_code != 0:
        raise ModelFailedError(f"{title} exited with code {result.exit_code}: {_last_words(result, redact)}")
    logger.info(
        "%s ended after %.1f seconds and left %d files%s",
        title,
        result.duration_seconds,
        len(found.files),
        "".join(f"; {count} of kind {kind} are passed over" for kind, count in found.skipped.items()),
        extra={"action": "model_ended"},
    )
    return StepResult(
        output_dir=str(folders.output),
        file_count=len(found.files),
        exit_code=result.exit_code,
        image_digest=result.image_digest,
        started_at=result.started_at,
        duration_seconds=round(result.duration_seconds, 3),
    )


def _last_words(result: ContainerResult, redact: Callable[[str], str]) -> str:
    words = next((line.strip() for line in reversed(result.log_tail) if line.strip()), "it printed nothing")
    return redact(words)[:_MAX_REASON]
