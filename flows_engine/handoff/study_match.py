"""A stored study x the flow definitions -> which flows fire. Its files are opened only where its record cannot tell."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from flows_engine.definition.schema import FlowDefinition
from flows_engine.definition.trigger_key import is_deep
from flows_engine.handoff.deep_values import TooManyValuesError
from flows_engine.handoff.matching import FlowFinding, MatchReport, match, origin_columns
from flows_engine.handoff.study_files import read_study
from flows_engine.handoff.study_store import StudyNotFoundError, StudyRecord, StudyStore, TagColumn


def match_study(study: StudyRecord, definitions: Iterable[FlowDefinition], *, store: StudyStore) -> MatchReport:
    """Return which of ``definitions`` fire on a study, and why the others do not.

    The files are read, once, where a definition asks for what lies in a sequence or in the block of a private creator
    and all else that it asks for holds. Raises ``StudyNotFoundError`` where they are not there, or cannot be read.
    """
    asked = tuple(definitions)
    report = match(study, asked)
    asking = [definition for definition, finding in zip(asked, report.flows, strict=True) if finding.asks_files]
    if not asking:
        return report
    answers = {finding.flow: finding for finding in _of_files(study, asking, store=store)}
    return replace(report, flows=tuple(answers.get(finding.flow, finding) for finding in report.flows))


def _of_files(study: StudyRecord, asking: list[FlowDefinition], *, store: StudyStore) -> Iterable[FlowFinding]:
    keys = deep_keys(asking)
    try:
        read = read_study(store.input_folder(study.study_id), keys=keys)
    except OSError as error:
        reason = error.strerror or type(error).__name__
        raise StudyNotFoundError(f"the files of study {study.study_id} cannot be read: {reason}") from error
    except TooManyValuesError as error:
        problem = f"{error}; name another tag than {', '.join(sorted(keys))}"
        return [FlowFinding(flow=definition.name, verdict="undecided", problem=problem) for definition in asking]
    return match(study.model_copy(update={"fingerprint": read.fingerprint}), asking).flows


def searched_columns(
    study: StudyRecord, definitions: Iterable[FlowDefinition], *, store: StudyStore
) -> dict[str, TagColumn]:
    """Return the values of a study in which the triggers of ``definitions`` search, by key. They are of a patient.

    Raises as ``match_study`` does, and ``TooManyValuesError``.
    """
    keys = deep_keys(definitions)
    fingerprint = read_study(store.input_folder(study.study_id), keys=keys).fingerprint if keys else study.fingerprint
    return {**fingerprint.columns, **origin_columns(study)}


def deep_keys(definitions: Iterable[FlowDefinition]) -> frozenset[str]:
    """Return the keys of the definitions' triggers for which the files of a study have to be read."""
    return frozenset(
        condition.tag
        for definition in definitions
        for trigger in definition.triggers
        for condition in trigger.conditions
        if is_deep(condition.tag)
    )
