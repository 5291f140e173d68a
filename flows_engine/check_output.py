"""The files of a run's last output folder, held against what its flow expects of them."""

from __future__ import annotations

import logging
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from flows_engine.data_set_walk import UnreadableError
from flows_engine.definition.expect import Expect
from flows_engine.destinations.part10_head import NotSendableError, read_head
from flows_engine.errors import UnexpectedOutputError, WorkspaceError
from flows_engine.expectations import (
    PATIENT_ID,
    PATIENT_NAME,
    Finding,
    InstanceFacts,
    Received,
    of_folder,
    of_instance,
    of_other_file,
    of_unreadable,
    received,
    taken_together,
)
from flows_engine.handoff.study_store import Fingerprint, TagColumn
from flows_engine.instance_facts import instance_facts
from flows_engine.output_files import OutputFiles, is_dicom, output_files, result_files
from flows_engine.redaction import Redactor, redactor_for

_MOST_FILES_NAMED: Final = 3
_MOST_REASONS: Final = 5
_LONGEST_PATH: Final = 100


@dataclass(frozen=True, kw_only=True)
class OutputCounts:
    """How much was looked at, and found to be as expected."""

    file_count: int
    dicom_count: int


@dataclass(frozen=True, kw_only=True)
class _Found:
    """A finding, the file that it is about (None: the whole output), and what that file says, where it can be read."""

    finding: Finding
    file: Path | None = None
    facts: InstanceFacts | None = None


def check_output(
    folder: Path,
    *,
    expect: Expect,
    fingerprint: Fingerprint,
    input_folder: Path,
    is_whole: bool = True,
    logger: logging.Logger | logging.LoggerAdapter[logging.Logger],
) -> OutputCounts:
    """Look at every file of ``folder``, at any depth, and tell all that is not as expected in one line.

    ``fingerprint`` is of the study in ``input_folder``, whose files are read only where it does not tell enough, or
    where they are only some of the study, so not ``is_whole``. Raises ``UnexpectedOutputError``, whose message names
    files without the patient and the study, and ``WorkspaceError`` for what cannot be listed or opened.
    """
    found = result_files(folder)
    dicom = frozenset(file for file in found.files if is_dicom(file))
    told = received(fingerprint) if is_whole else None
    given = (told or _received(input_folder)) if expect.of_instances else None
    sentence = _sentence(
        _findings(expect, found=found, dicom=dicom, given=given),
        folder=folder,
        redact=_each_of(redactor_for(fingerprint), *([_redactor_of(given)] if given else [])),
    )
    if sentence:
        raise UnexpectedOutputError(f"the output is not as expected, so nothing is sent: {sentence}")
    logger.info(
        "the output is as expected: %d files, %d of them DICOM",
        len(found.files),
        len(dicom),
        extra={"action": "output_checked"},
    )
    return OutputCounts(file_count=len(found.files), dicom_count=len(dicom))


def _received(input_folder: Path) -> Received:
    try:
        return taken_together(instance_facts(file) for file in output_files(input_folder).files)
    except UnreadableError as error:
        sentence = f"what was received cannot be compared with: an instance of it cannot be read, since {error}"
        raise WorkspaceError(sentence) from None


def _findings(
    expect: Expect, *, found: OutputFiles, dicom: frozenset[Path], given: Received | None
) -> Iterator[_Found]:
    for finding in of_folder(expect, file_count=len(found.files), skipped=found.skipped):
        yield _Found(finding=finding)
    known = given.sop_instance_uids | _sop_instance_uids(dicom) if given and expect.references_exist else None
    for file in found.files:
        if file not in dicom:
            yield from (_Found(finding=finding, file=file) for finding in of_other_file(expect))
        elif given or expect.dicom_only:
            try:
                facts = instance_facts(file, known_instances=known)
            except UnreadableError as error:
                yield from (_Found(finding=finding, file=file) for finding in of_unreadable(expect, str(error)))
                continue
            for finding in of_instance(expect, facts, given=given) if given else ():
                yield _Found(finding=finding, file=file, facts=facts)


def _sop_instance_uids(files: Iterable[Path]) -> frozenset[str]:
    """Return which instances the files are. What cannot be read is none, and is told of when it is looked at."""
    uids: set[str] = set()
    for file in files:
        try:
            uids.add(read_head(file).sop_instance_uid)
        except NotSendableError:
            continue
    return frozenset(uids)


def _sentence(found: Iterable[_Found], *, folder: Path, redact: Callable[[str], str]) -> str:
    """Return all that was found, grouped by reason; empty where nothing was."""
    counts: Counter[Finding] = Counter()
    reasons: dict[Finding, str] = {}
    places: defaultdict[Finding, list[str]] = defaultdict(list)
    for one in found:
        counts[one.finding] += 1
        if len(places[one.finding]) < _MOST_FILES_NAMED:
            # The patient and the study of an output may be others than those of the run.
            own = _each_of(redact, *([_redactor_of(one.facts)] if one.facts else []))
            reasons.setdefault(one.finding, own(one.finding.reason))
            if one.file is not None:
                places[one.finding].append(_shown(one.file.relative_to(folder), redact=own))
    parts = [
        f"{finding.expectation}: {reasons[finding]}{_named(places[finding], count)} ({finding.way_out})"
        for finding, count in [*counts.items()][:_MOST_REASONS]
    ]
    if len(counts) > _MOST_REASONS:
        parts.append(f"and {len(counts) - _MOST_REASONS} more reasons")
    return "; ".join(parts)


def _named(places: list[str], count: int) -> str:
    if not places:
        return ""
    more = count - len(places)
    return f": {', '.join(places)}" + (f" and {more} more" if more else "")


def _shown(path: Path, *, redact: Callable[[str], str]) -> str:
    """Return a path that a stranger named, on one line and without the patient."""
    text = "".join(
        character if character.isprintable() else character.encode("unicode_escape").decode("ascii")
        for character in redact(str(path))
    )
    return text if len(text) <= _LONGEST_PATH else f"…{text[-_LONGEST_PATH:]}"


def _redactor_of(said: Received | InstanceFacts) -> Callable[[str], str]:
    """Return what takes a patient and a study out of a text."""
    columns = {
        PATIENT_ID: TagColumn(values=(tuple(said.patient_ids),), index=()),
        PATIENT_NAME: TagColumn(values=(tuple(said.patient_names),), index=()),
    }
    # An id of three characters is found, too, where it stands alone: folders are named by ids.
    others = Redactor({*said.patient_ids, *said.study_instance_uids})
    return _each_of(redactor_for(Fingerprint(instance_count=0, columns=columns)), others)


def _each_of(*redactors: Callable[[str], str]) -> Callable[[str], str]:
    def redact(text: str) -> str:
        for one in redactors:
            text = one(text)
        return text

    return redact
