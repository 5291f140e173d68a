"""One model of a flow, from its folders to its exit code."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from pydantic import BaseModel, ConfigDict, Field

from flows_engine.branch_slots import branch_slot
from flows_engine.container_spec import TASK_LABEL, Origin, container_spec, task_label
from flows_engine.definition.allowable_kwargs import SETTING
from flows_engine.definition.schema import FlowDefinition
from flows_engine.definition.step_graph import RESULT
from flows_engine.disk_reserve import DiskReserve
from flows_engine.errors import (
    DiskFilledError,
    EngineError,
    ModelFailedError,
    NoSpaceError,
    NotAllowedError,
    WorkspaceError,
)
from flows_engine.gpu_health import Health, health
from flows_engine.gpu_memory import total_mib
from flows_engine.interfaces import ContainerResult, ContainerRunner
from flows_engine.model_result import Decision, UnusableResultError, decision, read_result, shown
from flows_engine.output_files import output_files, room_taken_bytes
from flows_engine.run_record import Amount, StepRecord, write_record
from flows_engine.static_mounts import StaticMounts
from flows_engine.step_gpus import step_gpus
from flows_engine.workspace import Workspace, open_for_reading

_MAX_REASON: Final = 300


def _is_empty(value: object) -> bool:
    return not value


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
    result: str = Field(default="", exclude_if=_is_empty)
    """What the model says of it in ``result.json``, without the patient."""
    decision: Decision | None = Field(default=None, exclude_if=_is_empty)
    """What the model decides by it, if it is the one whose output is sent."""


@dataclass(frozen=True, kw_only=True)
class Host:
    """What this host lends to a step. ``gpu_total_mib`` tells the memory of those GPUs for which it is known,
    ``gpu_health`` how those are of which it is known.
    """

    gpus: Sequence[str]
    gpu_folder: Path
    lost_gpu_folder: Path
    gpu_wait_seconds: float
    branch_slots: int
    """How many models this host executes beside one of each run, for runs that have branches."""
    branch_folder: Path
    static_mounts: StaticMounts
    disk: DiskReserve
    """What models have to leave of the disk with the folders of runs."""
    default_mem_limit: str | None = None
    docker_kwargs_allowed: Collection[str] = ()
    """The arguments of Docker that flows may use here, beyond those that every flow may."""
    gpu_total_mib: Callable[[Sequence[str]], Mapping[str, int]] = total_mib
    gpu_health: Callable[[Sequence[str]], Mapping[str, Health]] = health


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
    ``ContainerRunner`` raises, ``NoSpaceError``, ``NotAllowedError``, ``GpuMissingError``, ``GpuUnavailableError``,
    ``GpuLostError``, ``StaticMountError``, ``WorkspaceError``, ``ModelFailedError`` for an exit code that is not 0, and
    ``UnusableResultError``; each message begins with the number and the image of the model. What a model left that
    filled a disk is removed.
    """
    model = definition.models[step]
    title = _title(definition, step)
    # All models are looked at: one that will be refused should not let others compute first.
    for number, each in enumerate(definition.models):
        if beyond := each.docker_kwargs.not_among(host.docker_kwargs_allowed):
            raise NotAllowedError(
                f"{_title(definition, number)} asks Docker for {', '.join(beyond)}, which this host does not allow;"
                f" who looks after it can, by {SETTING}"
            )
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
        if shortage := host.disk.shortage():
            workspace.discard(step)
            raise NoSpaceError(f"it is not started, since {shortage}")
        # Before a GPU is held: archives may take minutes to unpack. The digests are of what is there now, since an
        # archive may be replaced while the model runs.
        mounts = host.static_mounts.resolve(model.static_mounts)
        static_digests = host.static_mounts.digests(model.static_mounts)
        taken = _found(sources.values()).amount
        with ExitStack() as stack:
            if definition.graph.has_branches and not model.gpu:  # what needs a GPU waits for that
                stack.enter_context(
                    branch_slot(
                        workspace.root / "branch.lock",
                        shared=host.branch_folder,
                        shared_count=host.branch_slots,
                        is_halted=is_halted,
                    )
                )
            held = stack.enter_context(
                step_gpus(
                    model,
                    gpus=host.gpus,
                    total_mib=host.gpu_total_mib,
                    health=host.gpu_health,
                    folder=host.gpu_folder,
                    lost_folder=host.lost_gpu_folder,
                    wait_seconds=host.gpu_wait_seconds,
                    runner=runner,
                    instance_id=origin.instance_id,
                    logger=logger,
                    is_halted=is_halted,
                )
            )
            spec = container_spec(
                definition,
                step=step,
                folders=folders,
                origin=origin,
                gpu_ids=held.gpus,
                gpu_lease=held.name,
                static_mounts=mounts,
                default_mem_limit=host.default_mem_limit,
            )
            logger.info("%s starts", title, extra={"action": "model_started"})
            result = runner.run(
                spec,
                on_line=lambda line: logger.info("%s", redact(line)),
                on_notice=logger.warning,
                is_halted=is_halted,
                watch=lambda: _raise_if_short(host.disk),
            )
            if result.exit_code != 0:
                held.raise_if_lost()
        left = _left(folders.outputs.values())
        _keep(
            StepRecord(
                model=step + 1,
                image=model.docker_kwargs.image,
                image_digest=result.image_digest,
                gpus=spec.gpu_ids,
                static_digests=static_digests,
                engine_version=result.engine_version,
                started_at=datetime.fromtimestamp(result.started_at, UTC),
                duration_seconds=round(result.duration_seconds, 3),
                exit_code=result.exit_code,
                peak_memory_bytes=result.peak_memory_bytes,
                input=taken,
                output=left.amount,
            ),
            workspace.step_record(step),
            logger=logger,
        )
    except DiskFilledError as error:
        raise _filled(error, title=title, step=step, workspace=workspace, outputs=folders.outputs.values()) from error
    except EngineError as error:
        raise type(error)(f"{title}: {error}") from error
    if result.exit_code != 0:
        raise ModelFailedError(f"{title} exited with code {result.exit_code}: {_last_words(result, redact)}")
    output_dir = folders.outputs.get(RESULT) or next(iter(folders.outputs.values()))
    try:
        said = read_result(output_dir)
        decides = step == definition.graph.result and bool(said)
        decided = decision(definition, said, redact=redact) if decides else None
    except UnusableResultError as error:
        if step == definition.graph.result and definition.model_decides:
            raise UnusableResultError(f"{title}: {error}") from error
        logger.warning("%s; nothing is made of it", error)
        said, decided = {}, None
    try:
        workspace.finish(step)
    except WorkspaceError as error:
        raise WorkspaceError(f"{title}: {error}") from error
    logger.info(
        "%s ended after %.1f seconds and left %d files%s",
        title,
        result.duration_seconds,
        left.amount.files,
        "".join(f"; {count} of kind {kind} are passed over" for kind, count in left.skipped.items()),
        extra={"action": "model_ended"},
    )
    return StepResult(
        output_dir=str(output_dir),
        file_count=left.amount.files,
        exit_code=result.exit_code,
        image_digest=result.image_digest,
        started_at=result.started_at,
        duration_seconds=round(result.duration_seconds, 3),
        result=shown(said, redact=redact),
        decision=decided,
    )


def _raise_if_short(disk: DiskReserve) -> None:
    if shortage := disk.shortage():
        raise DiskFilledError(shortage)


def _filled(
    error: DiskFilledError, *, title: str, step: int, workspace: Workspace, outputs: Iterable[Path]
) -> DiskFilledError:
    """Return what is said of a model that filled a disk, once its room is free again."""
    written = sum(room_taken_bytes(output) for output in outputs)
    try:
        workspace.discard(step)
        end = "it was killed, and its output removed"
    except WorkspaceError as not_removed:
        end = f"it was killed, and {not_removed}"
    # Nothing of it is here yet where the engine is elsewhere.
    wrote = f"it wrote {written:,} bytes to its output, and " if written else ""
    return DiskFilledError(f"{title}: {wrote}{error}; {end}")


def _title(definition: FlowDefinition, step: int) -> str:
    return f"model {step + 1} ({definition.models[step].docker_kwargs.image})"


def _keep(record: StepRecord, path: Path, *, logger: logging.Logger | logging.LoggerAdapter[logging.Logger]) -> None:
    """Write down how a model was run. That this cannot be done is no reason to run it again."""
    try:
        write_record(record, path)
    except EngineError as error:
        logger.warning("how the model was run is not kept: %s", error)


@dataclass(frozen=True, kw_only=True)
class _Found:
    amount: Amount
    skipped: Counter[str]


def _left(outputs: Collection[Path]) -> _Found:
    """Let the next model read what was left; return how much that is, and what else there is, by its kind."""
    for output in outputs:
        open_for_reading(output)
    return _found(outputs)


def _found(folders: Collection[Path]) -> _Found:
    listed = [output_files(folder) for folder in folders]
    files = [file for each in listed for file in each.files]
    skipped = Counter[str]()
    for each in listed:
        skipped.update(each.skipped)
    amount = Amount(files=len(files), bytes=sum(file.lstat().st_size for file in files))
    return _Found(amount=amount, skipped=skipped)


def _last_words(result: ContainerResult, redact: Callable[[str], str]) -> str:
    words = next((line.strip() for line in reversed(result.log_tail) if line.strip()), "it printed nothing")
    return redact(words)[:_MAX_REASON]
