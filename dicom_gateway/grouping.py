"""Which instances of one association belong together. Pure.

Two instances are of one patient if their keys are the same (see ``group_key``) and nothing else in them speaks against
it: a Patient's Birth Date, or a Patient's Name, that both have and that differs. Names are compared by family and given
name alone, whatever their case, spacing, further components and trailing ``^``: ``DOE^JOHN`` is ``Doe^John^M``, and is
not ``Doe^Jane``, nor ``Doe``. A name may be written up to three times (PS3.5 6.2.1.2); two that share no such writing
cannot be compared, and are taken for two people. In doubt there is one study more, never two patients in one.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from flows_engine.handoff.header import Header

PATIENT_NAME: Final = 0x00100010
PATIENT_ID: Final = 0x00100020
ISSUER_OF_PATIENT_ID: Final = 0x00100021
PATIENT_BIRTH_DATE: Final = 0x00100030
STUDY_INSTANCE_UID: Final = 0x0020000D
SERIES_INSTANCE_UID: Final = 0x0020000E

_UNDECODED: Final = "\N{REPLACEMENT CHARACTER}"
_WRITINGS: Final = 3
_COMPARED_COMPONENTS: Final = 2

GroupKey = tuple[str, ...]


def group_key(header: Header, *, sop_instance_uid: str) -> GroupKey:
    """Return what an instance has in common with the others of its patient.

    The same Patient ID of two issuers is two patients (PS3.3 C.7.1.1). Where there is no Patient ID, what is known to
    be of one patient stays together: a study, else a series, else only the instance itself.
    """
    patient_id = _whole(header, PATIENT_ID)
    if patient_id:
        return ("patient", patient_id, _whole(header, ISSUER_OF_PATIENT_ID))
    for level, tag in (("study", STUDY_INSTANCE_UID), ("series", SERIES_INSTANCE_UID)):
        uid = _whole(header, tag)
        if uid:
            return (level, uid)
    return ("instance", sop_instance_uid)


@dataclass(frozen=True, kw_only=True)
class _Person:
    """Who an instance, or a group of them, says that it is of. What it does not say is empty."""

    birth_date: str
    names: tuple[str, ...]

    def may_be(self, other: _Person) -> bool:
        if self.birth_date and other.birth_date and self.birth_date != other.birth_date:
            return False
        if not any(self.names) or not any(other.names):
            return True
        shared = [(mine, theirs) for mine, theirs in zip(self.names, other.names, strict=True) if mine and theirs]
        return bool(shared) and all(mine == theirs for mine, theirs in shared)

    def joined_by(self, other: _Person) -> _Person:
        names = tuple(mine or theirs for mine, theirs in zip(self.names, other.names, strict=True))
        return _Person(birth_date=self.birth_date or other.birth_date, names=names)


class Patients:
    """Numbers the patients of one association, in the order in which they come. Not safe to use from several
    threads.
    """

    def __init__(self) -> None:
        self._count = 0
        self._known: dict[GroupKey, dict[int, _Person]] = {}

    def number(self, header: Header, *, sop_instance_uid: str) -> int:
        """Return the number of the patient that an instance is of.

        An instance that says too little to tell two known patients apart joins neither.
        """
        people = self._known.setdefault(group_key(header, sop_instance_uid=sop_instance_uid), {})
        person = _Person(birth_date=_date(header), names=_names(header))
        same = [number for number, known in people.items() if known == person]
        possible = same or [number for number, known in people.items() if known.may_be(person)]
        if len(possible) != 1:
            number, self._count = self._count, self._count + 1
            people[number] = person
            return number
        people[possible[0]] = people[possible[0]].joined_by(person)
        return possible[0]


def share_patient(some: Iterable[tuple[str, Header]], others: Iterable[tuple[str, Header]]) -> bool:
    """Tell whether any of ``others`` is of a patient of ``some``; each header with its SOP Instance UID."""
    patients = Patients()
    numbers = {patients.number(header, sop_instance_uid=uid) for uid, header in some}
    return any(patients.number(header, sop_instance_uid=uid) in numbers for uid, header in others)


def _whole(header: Header, tag: int) -> str:
    """Return the values of ``tag`` with nothing lost: two that differ in any byte but padding are never the same."""
    text = "\\".join(header.values(tag) or ())
    if text.isascii():
        return text
    encoded = header.raw(tag).strip(b" \0").hex()
    return f"{text}\0{encoded}"


def _date(header: Header) -> str:
    return _whole(header, PATIENT_BIRTH_DATE).replace(".", "")


def _names(header: Header) -> tuple[str, ...]:
    text = header.text(PATIENT_NAME)
    if _UNDECODED in text:
        text = header.raw(PATIENT_NAME).decode("latin-1")
    writings = text.split("=")[:_WRITINGS]
    return tuple(_comparable(name) for name in writings) + ("",) * (_WRITINGS - len(writings))


def _comparable(name: str) -> str:
    components = unicodedata.normalize("NFKC", name).casefold().split("^")[:_COMPARED_COMPONENTS]
    return "^".join(" ".join(component.strip(" \0").split()) for component in components).rstrip("^")
