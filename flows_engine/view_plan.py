"""A definition + what stands in the files of a study -> which of them its models get, and where each lies. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path, PurePosixPath

from flows_engine.definition.errors import PatternTimeoutError
from flows_engine.definition.schema import FlowDefinition
from flows_engine.errors import NoInputError
from flows_engine.handoff.layout import Layout
from flows_engine.handoff.matching import matched_instances
from flows_engine.handoff.study_files import StudyFiles
from flows_engine.handoff.study_store import Fingerprint, StudyRecord


def view_plan(
    definition: FlowDefinition, *, study: StudyRecord, files: StudyFiles, source: Path
) -> Mapping[PurePosixPath, Path]:
    """Return the files that the models get, by where each is to lie. The same study gives the same plan.

    ``files`` are those below ``source``, with the values that ``deep_keys`` of the definition ask for. Raises
    ``NoInputError`` where there are none to give.
    """
    chosen = _chosen(definition, study=study, files=files)
    if not chosen:
        raise NoInputError(
            f"input: matched: none of {len(files.files)} instances meets a trigger of {definition.name}, so there is"
            " nothing to run on; run it on a study that matches, or with `input: all`"
        )
    layout = Layout(definition.tar_subdir) if definition.tar_subdir is not None else None
    plan: dict[PurePosixPath, Path] = {}
    for number in chosen:
        file = files.files[number]
        place = PurePosixPath(file.relative_to(source))
        if layout is not None:
            place = layout.folder(partial(_values, files.fingerprint, number)) / file.name
        plan[_free(place, plan)] = file
    return plan


def _chosen(definition: FlowDefinition, *, study: StudyRecord, files: StudyFiles) -> list[int]:
    if definition.input == "all":
        return list(range(len(files.files)))
    try:
        matched = matched_instances(study.model_copy(update={"fingerprint": files.fingerprint}), definition)
    except PatternTimeoutError as error:
        raise NoInputError(f"input: matched: it cannot be told which instances match: {error}") from None
    return [number for number, matches in enumerate(matched) if matches]


def _values(fingerprint: Fingerprint, number: int, tag: int) -> tuple[str, ...] | None:
    column = fingerprint.columns.get(f"{tag:08X}")
    return None if column is None or column.index[number] < 0 else column.values[column.index[number]]


def _free(place: PurePosixPath, taken: Mapping[PurePosixPath, Path]) -> PurePosixPath:
    """Return ``place``, with a number where another file of that name lies already."""
    free, copy = place, 1
    while free in taken:
        copy += 1
        free = place.with_name(f"{place.stem}_{copy}{place.suffix}")
    return free
