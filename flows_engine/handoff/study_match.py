"""A stored study x the flow definitions -> which flows fire. Its files are opened only where its record cannot tell."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import suppress
from dataclasses import replace

from flows_engine.definition.schema import FlowDefinition
from flows_engine.definition.trigger_key import is_deep
from flows_engine.handoff.deep_values import TooManyValuesError
from flows_engine.handoff.matching import FlowFinding, MatchReport, match, origin_columns
from flows_engine.handoff.study_files import read_study
from flows_engine.handoff.study_store import Fingerprint, StudyNotFoundError, StudyRecord, StudyStore, TagColumn


def match_study(study: StudyRecord, definitions: Iterable[FlowDefinition], *, store: StudyStore) -> MatchReport:
    """Return which of ``definitions`` fire on a study, and why the others do not.

    The files are read, once, where a definition asks for what lies in a sequence or in the block of a private creator
    and all else that it asks for holds. Where they cannot be read, such a flow is undecided, and no other is.
    """
    asked = tuple(definitions)
    report = match(study, asked)
    asking = [definition for definition, finding in zip(asked, report.flows, strict=True) if finding.asks_files]
    if not asking:
        return report
    answers = {finding.flow: finding for finding in _of_files(study, asking, store=store)}
    return replace(report, flows=tuple(answers.get(finding.flow, finding) for finding in report.flows))


def searched_columns(
    study: StudyRecord, definitions: Iterable[FlowDefinition], *, store: StudyStore
) -> dict[str, TagColumn]:
    """Return the values of a study in which the triggers of ``definitions`` search, by key. They are of a patient.

    Those that only the files have are left out where these cannot be read.
    """
    fingerprint = study.fingerprint
    if keys := deep_keys(definitions):
        with suppress(_UnreadFilesError):
            fingerprint = _read(study, keys, store=store)
    return {**fingerprint.columns, **origin_columns(study)}


class _UnreadFilesError(Exception):
    """What lies deep in the files of a study is not known; the message says why, and names no study."""


def _of_files(study: StudyRecord, asking: list[FlowDefinition], *, store: StudyStore) -> Iterable[FlowFinding]:
    try:
        fingerprint = _read(study, deep_keys(asking), store=store)
    except _UnreadFilesError as error:
        return [
            FlowFinding(flow=definition.name, verdict="undecided", problem=f"{_named(definition)}: {error}")
            for definition in asking
        ]
    return match(study.model_copy(update={"fingerprint": fingerprint}), asking).flows


def _read(study: StudyRecord, keys: frozenset[str], *, store: StudyStore) -> Fingerprint:
    try:
        fingerprint = read_study(store.input_folder(study.study_id), keys=keys).fingerprint
    except StudyNotFoundError:
        raise _UnreadFilesError("the files of the study are not there") from None
    except OSError as error:
        raise _UnreadFilesError(f"the files of the study cannot be read: {error.strerror or 'read error'}") from error
    except TooManyValuesError as error:
        raise _UnreadFilesError(f"{error}; name a tag with fewer") from None
    if fingerprint.instance_count != study.instance_count:
        raise _UnreadFilesError("the files of the study are not those that were received")
    return fingerprint


def _named(definition: FlowDefinition) -> str:
    return next(
        condition.written
        for trigger in definition.triggers
        for condition in trigger.conditions
        if is_deep(condition.tag)
    )


def deep_keys(definitions: Iterable[FlowDefinition]) -> frozenset[str]:
    """Return the keys of the definitions' triggers for which the files of a study have to be read."""
    return frozenset(
        condition.tag
        for definition in definitions
        for trigger in definition.triggers
        for condition in trigger.conditions
        if is_deep(condition.tag)
    )
