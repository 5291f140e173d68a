"""One model of a flow, from its folders to its exit code."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from pydantic import BaseModel, ConfigDict

from flows_engine.branch_slots import branch_slot
from flows_engine.container_spec import TASK_LABEL, Origin, container_spec, task_label
from flows_engine.definition.schema import FlowDefinition, Model
from flows_engine.definition.step_graph import RESULT
from flows_engine.errors import EngineError, ModelFailedError
from flows_engine.gpu_lease import lease
from flows_engine.interfaces import ContainerResult, ContainerRunner
from flows_engine.output_files import output_files
from flows_engine.static_mounts import StaticMounts
from flows_engine.workspace import Workspace, open_for_reading

_MAX_REASON: Final = 300


class StepResult(BaseModel):
    """What a model left, and how it ran. Holds nothing of the patient, so that Prefect may keep it."""

    model_config = ConfigDict(frozen=True)

    output_dir: str
    """Where what is sent lies, if this is the model that writes it; else one of the places that it wrote to."""
    file_count: int
    exit_code: int
    image_digest: str
    duration_seconds: float
    started_at: float = 0.0
    """In seconds since 1970. Tells this result from that of the same step run again; 0 where it was kept earlier."""


@dataclass(frozen=True, kw_only=True)
class Host:
    """What this host lends to a step."""

    gpus: Sequence[str]
    gpu_folder: Path
    gpu_wait_seconds: float
    branch_slots: int
    """How many models this host executes beside one of each run, for runs that have branches."""
    static_mounts: StaticMounts
    default_mem_limit: str | None = None


def run_step(
    definition: FlowDefinition,
    *,
    step: int,
    sources: Mapping[str, Path],
    origin: Origin,
    workspace: Workspace,
    host: Host,
    runner: ContainerRunner,
    redact: Callable[[str], str],
    logger: logging.Logger | logging.LoggerAdapter[logging.Logger],
    is_halted: Callable[[], bool] = lambda: False,
) -> StepResult:
    """Run model number ``step`` (counted from 0) on the files in ``sources``, by the names under which it reads them.

    The container's log goes to ``logger``, line by line as it comes, without the patient. Raises what
    ``ContainerRunner`` raises, ``GpuUnavailableError``, ``StaticMountError``, ``WorkspaceError``, and
    ``ModelFailedError`` for an exit code that is not 0; each message begins with the number and the image of the model.
    """
    model = definition.models[step]
    title = f"model {step + 1} ({model.docker_kwargs.image})"
    try:
        # A process that was killed leaves its container running, which would write into the folders of this attempt.
        runner.remove_all(label=TASK_LABEL, value=task_label(origin.run_id, step))
        folders = workspace.prepare(
            step,
            sources=sources,
            writes=definition.graph.steps[step].writes,
            copy_inputs=model.input_writable,
            config=model.config,
        )
        with ExitStack() as held:
            if definition.graph.has_branches and not model.gpu:  # what needs a GPU waits for that
                held.enter_context(
                    branch_slot(
                        workspace.root / "branch.lock",
                        shared=host.gpu_folder,
                        shared_count=host.branch_slots,
                        is_halted=is_halted,
                    )
                )
            spec = container_spec(
                definition,
                step=step,
                folders=folders,
                origin=origin,
                gpu_ids=_gpu_ids(model, host, held),
                static_mounts=host.static_mounts.resolve(model.static_mounts),
                default_mem_limit=host.default_mem_limit,
            )
            logger.info("%s starts", title, extra={"action": "model_started"})
            result = runner.run(
                spec,
                on_line=lambda line: logger.info("%s", redact(line)),
                on_notice=logger.warning,
                is_halted=is_halted,
            )
        file_count, skipped = _left(folders.outputs.values())
    except EngineError as error:
        raise type(error)(f"{title}: {error}") from error
    if result.exit_code != 0:
        raise ModelFailedError(f"{title} exited with code {result.exit_code}: {_last_words(result, redact)}")
    logger.info(
        "%s ended after %.1f seconds and left %d files%s",
        title,
        result.duration_seconds,
        file_count,
        "".join(f"; {count} of kind {kind} are passed over" for kind, count in skipped.items()),
        extra={"action": "model_ended"},
    )
    return StepResult(
        output_dir=str(folders.outputs.get(RESULT) or next(iter(folders.outputs.values()))),
        file_count=file_count,
        exit_code=result.exit_code,
        image_digest=result.image_digest,
        started_at=result.started_at,
        duration_seconds=round(result.duration_seconds, 3),
    )


def _left(outputs: Iterable[Path]) -> tuple[int, Counter[str]]:
    """Let the next model read what was left; return how many files that are, and what else there is, by its kind."""
    file_count, skipped = 0, Counter[str]()
    for output in outputs:
        open_for_reading(output)
        found = output_files(output)
        file_count += len(found.files)
        skipped.update(found.skipped)
    return file_count, skipped


def _gpu_ids(model: Model, host: Host, held: ExitStack) -> tuple[str, ...]:
    if not model.gpu:
        return ()
    return (held.enter_context(lease(host.gpus, folder=host.gpu_folder, wait_seconds=host.gpu_wait_seconds)),)


def _last_words(result: ContainerResult, redact: Callable[[str], str]) -> str:
    words = next((line.strip() for line in reversed(result.log_tail) if line.strip()), "it printed nothing")
    return redact(words)[:_MAX_REASON]
