"""What a run did, for whoever has to account for a result: which image, which definition, which weights, how long.

Holds nothing of the patient: numbers, digests, opaque ids, and what the definition says.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from contextlib import suppress
from datetime import datetime
from pathlib import Path
from typing import Final, TypeVar

from pydantic import BaseModel, ConfigDict

from flows_engine.errors import NoSpaceError, WorkspaceError, is_full

_MIB: Final = 2**20
_Kind = TypeVar("_Kind", bound=BaseModel)


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True)


class Amount(_Record):
    """Regular files, and what they hold together."""

    files: int
    bytes: int


class StepRecord(_Record):
    """How one model was run the last time, whichever way it ended. Times are in UTC."""

    model: int
    """Its number in the flow, counted from 1."""
    image: str
    image_digest: str
    gpus: tuple[str, ...] = ()
    static_digests: dict[str, str | None] = {}
    """The SHA-256 of each archive of ``STATIC_DIR`` that it saw; None for a folder."""
    engine_version: str
    started_at: datetime
    duration_seconds: float
    exit_code: int
    peak_memory_bytes: int | None
    input: Amount
    output: Amount


class DeliveryRecord(_Record):
    """What one destination has now."""

    destination: str
    instances: int


class RunRecord(_Record):
    """One run, as far as it came."""

    run_id: str
    study_id: str
    flow: str
    version: str
    definition_digest: str
    """The SHA-256 of the definition, as the run was made with it."""
    worker_host: str
    ended_at: datetime
    state: str
    steps: tuple[StepRecord, ...]
    deliveries: tuple[DeliveryRecord, ...] = ()


def write_record(record: BaseModel, path: Path) -> None:
    """Write a record; it is there whole or not at all. Raises ``NoSpaceError`` and ``WorkspaceError``."""
    unfinished = path.with_name(f".{path.name}.unfinished")
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        with unfinished.open("w") as file:
            file.write(record.model_dump_json(indent=2) + "\n")
            file.flush()
            os.fsync(file.fileno())
        unfinished.replace(path)
    except OSError as error:
        kind = NoSpaceError if is_full(error) else WorkspaceError
        raise kind(f"{path} cannot be written: {error.strerror}") from error


def read_records(kind: type[_Kind], paths: Iterable[Path]) -> tuple[_Kind, ...]:
    """Return those records of ``paths`` that are there and can be read."""
    found = []
    for path in paths:
        with suppress(OSError, ValueError):
            found.append(kind.model_validate_json(path.read_text()))
    return tuple(found)


def as_markdown(record: RunRecord) -> str:
    """Return a record as a person reads it."""
    lines = [
        f"**{_literal(record.flow)}** {_literal(record.version)}",
        "",
        f"Study `{record.study_id}`, definition `{record.definition_digest[:12]}`",
        "",
        f"{record.state}, on {_literal(record.worker_host)}",
        "",
        "| model | image | exit code | seconds | peak memory | input | output | GPU |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
        *(_row(step) for step in record.steps),
    ]
    if record.deliveries:
        lines += ["", "| destination | instances |", "| --- | --- |"]
        lines += [f"| {_literal(sent.destination)} | {sent.instances} |" for sent in record.deliveries]
    digests = {name: digest for step in record.steps for name, digest in step.static_digests.items()}
    if digests:
        lines += ["", "| static mount | SHA-256 |", "| --- | --- |"]
        lines += [f"| {_literal(name)} | {digest or 'a folder'} |" for name, digest in sorted(digests.items())]
    return "\n".join(lines)


def _row(step: StepRecord) -> str:
    memory = "" if step.peak_memory_bytes is None else f"{step.peak_memory_bytes / _MIB:.0f} MiB"
    cells = [
        str(step.model),
        f"`{step.image}` `{step.image_digest.rpartition(':')[2][:12]}`",
        str(step.exit_code),
        f"{step.duration_seconds:.1f}",
        memory,
        _shown(step.input),
        _shown(step.output),
        ", ".join(step.gpus),
    ]
    return f"| {' | '.join(cells)} |"


def _shown(amount: Amount) -> str:
    return f"{amount.files} files, {amount.bytes / _MIB:.1f} MiB"


def _literal(text: str) -> str:
    """Return ``text`` without what Markdown would take for a mark of its own."""
    return "".join(f"\\{character}" if character in r"\`*_{}[]<>()#+!|~" else character for character in text)
