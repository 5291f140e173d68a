"""What a flow expects, what was received, what was left -> what is not as expected. Pure.

Reasons hold no value of a patient or a study: they are read by whoever reads the state of a run.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Final, Literal

from flows_engine.definition.expect import Expect
from flows_engine.handoff.study_store import Fingerprint

Expectation = Literal["min_files", "dicom_only", "same_patient", "same_study", "references_exist", "modality"]

PATIENT_ID: Final = "00100020"
PATIENT_NAME: Final = "00100010"
STUDY_INSTANCE_UID: Final = "0020000D"
_SOP_INSTANCE_UID: Final = "00080018"

_CODE_STRING: Final = re.compile(r"[A-Z0-9_ ]{1,16}")

WAY_OUT: Final[dict[Expectation, str]] = {
    "min_files": "set a smaller `expect: {min_files: …}` if fewer are right",
    "dicom_only": "set `expect: {dicom_only: false}` if the model is meant to leave other files, which are not sent",
    "same_patient": "set `expect: {same_patient: false}` if the model is meant to change it",
    "same_study": "set `expect: {same_study: false}` if the model is meant to change it",
    "references_exist": "set `expect: {references_exist: false}` if they are meant to lie elsewhere",
    "modality": "name it in `expect: {modality: …}` if it is right",
}


@dataclass(frozen=True, kw_only=True)
class InstanceFacts:
    """What one instance says of itself. Each holds every value that stands there; none is empty, or padded."""

    patient_ids: frozenset[str] = frozenset()
    patient_names: frozenset[str] = frozenset()
    study_instance_uids: frozenset[str] = frozenset()
    sop_instance_uids: frozenset[str] = frozenset()
    modalities: frozenset[str] = frozenset()
    missing_reference_count: int = 0
    """References to instances that are neither in the input nor in the output; 0 where nobody asked."""


@dataclass(frozen=True, kw_only=True)
class Received:
    """What the instances of the input say, taken together."""

    patient_ids: frozenset[str]
    patient_names: frozenset[str]
    study_instance_uids: frozenset[str]
    sop_instance_uids: frozenset[str]


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One thing that is not as expected, and why."""

    expectation: Expectation
    reason: str
    way_out: str


def comparable(value: str) -> str:
    """Return a value so that two which differ only in padding or in how a letter is composed are the same."""
    return unicodedata.normalize("NFC", "\\".join(part.strip(" \0") for part in value.split("\\"))).strip("\\")


def comparable_name(name: str) -> str:
    """Return a name without padding, and without the empty components at its end (PS3.5 6.2.1.1)."""
    groups = (comparable(name).split("=")) if name else []
    return "=".join("^".join(part.strip() for part in group.split("^")).rstrip("^") for group in groups).rstrip("=")


def is_decoded(text: str) -> bool:
    """Tell whether a text stands for all of the bytes that it was decoded from."""
    return "\N{REPLACEMENT CHARACTER}" not in text and "\x1b" not in text


def received(fingerprint: Fingerprint) -> Received | None:
    """Return what the record of a study says of its instances; None where only they themselves can tell.

    They have to be asked where the fingerprint is empty, where it leaves elements out and lacks one of these, and where
    a value could not be decoded: two that differ may look the same then.
    """
    columns = fingerprint.columns
    wanted = (PATIENT_ID, PATIENT_NAME, STUDY_INSTANCE_UID, _SOP_INSTANCE_UID)
    if not fingerprint.instance_count or (fingerprint.left_out_count and any(tag not in columns for tag in wanted)):
        return None
    written = {tag: ["\\".join(values) for values in columns[tag].values] if tag in columns else [] for tag in wanted}
    if any(not is_decoded(value) for tag in (PATIENT_ID, PATIENT_NAME) for value in written[tag]):
        return None
    return Received(
        patient_ids=_without_empty(map(comparable, written[PATIENT_ID])),
        patient_names=_without_empty(map(comparable_name, written[PATIENT_NAME])),
        study_instance_uids=_without_empty(map(comparable, written[STUDY_INSTANCE_UID])),
        sop_instance_uids=_without_empty(map(comparable, written[_SOP_INSTANCE_UID])),
    )


def taken_together(instances: Iterable[InstanceFacts]) -> Received:
    """Return what several instances say."""
    patient_ids: set[str] = set()
    patient_names: set[str] = set()
    study_instance_uids: set[str] = set()
    sop_instance_uids: set[str] = set()
    for facts in instances:
        patient_ids |= facts.patient_ids
        patient_names |= facts.patient_names
        study_instance_uids |= facts.study_instance_uids
        sop_instance_uids |= facts.sop_instance_uids
    return Received(
        patient_ids=frozenset(patient_ids),
        patient_names=frozenset(patient_names),
        study_instance_uids=frozenset(study_instance_uids),
        sop_instance_uids=frozenset(sop_instance_uids),
    )


def of_folder(expect: Expect, *, file_count: int, skipped: dict[str, int]) -> Iterator[Finding]:
    """Say what is wrong with an output as a whole. ``skipped`` counts what is no file, by its kind."""
    if file_count < expect.min_files:
        yield _finding("min_files", f"{file_count} of at least {expect.min_files} files are left")
    if expect.dicom_only:
        for kind, count in skipped.items():
            yield _finding("dicom_only", f"{count} of kind {kind} are left")


def of_other_file(expect: Expect) -> Iterator[Finding]:
    """Say what is wrong with a file that does not begin as DICOM does."""
    if expect.dicom_only:
        yield _finding("dicom_only", "no DICOM file")


def of_unreadable(expect: Expect, why: str) -> Iterator[Finding]:
    """Say what is wrong with a file that begins as DICOM does and cannot be read: nothing that is expected holds."""
    asked: dict[Expectation, bool] = {
        "same_patient": expect.same_patient,
        "same_study": expect.same_study,
        "references_exist": expect.references_exist,
        "modality": bool(expect.modality),
        "dicom_only": expect.dicom_only,
    }
    first = next((expectation for expectation, is_asked in asked.items() if is_asked), None)
    if first is not None:
        way_out = "the model has to leave whole DICOM files"
        yield Finding(expectation=first, reason=f"cannot be read, since {why}", way_out=way_out)


def of_instance(expect: Expect, facts: InstanceFacts, *, given: Received) -> Iterator[Finding]:
    """Say what is wrong with an instance."""
    if expect.same_patient:
        # The Patient ID is compared, and the name only where the input has no ID.
        if given.patient_ids:
            yield from _same("same_patient", "Patient ID", facts.patient_ids, given.patient_ids)
        elif given.patient_names:
            yield from _same("same_patient", "Patient's Name", facts.patient_names, given.patient_names)
    if expect.same_study:
        uids = facts.study_instance_uids
        yield from _same("same_study", "Study Instance UID", uids, given.study_instance_uids)
    if expect.references_exist and facts.missing_reference_count:
        reason = "refers to instances that are neither in the input nor in the output"
        yield _finding("references_exist", reason)
    if expect.modality and (not facts.modalities or facts.modalities - set(expect.modality)):
        wanted = " or ".join(expect.modality)
        yield _finding("modality", f"{_modality(facts.modalities - set(expect.modality))}, not {wanted}")


def _same(expectation: Expectation, name: str, left: frozenset[str], given: frozenset[str]) -> Iterator[Finding]:
    if not left:
        yield _finding(expectation, f"no {name}")
    elif left - given:
        yield _finding(expectation, f"another {name} than the input")


def _modality(others: frozenset[str]) -> str:
    if not others:
        return "none"
    first = min(others)
    return first if _CODE_STRING.fullmatch(first) else "another"


def _finding(expectation: Expectation, reason: str) -> Finding:
    return Finding(expectation=expectation, reason=reason, way_out=WAY_OUT[expectation])


def _without_empty(values: Iterable[str]) -> frozenset[str]:
    return frozenset(value for value in values if value)
