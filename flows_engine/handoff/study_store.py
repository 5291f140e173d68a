"""The studies on disk: where each lies, and what is known of it.

Layout, below ``DATA_DIR`` (one file system, so that a rename is atomic)::

    studies/<study_id>/input/…      the instances; never changed once the study is here
    studies/<study_id>/study.json   StudyRecord
"""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Final, Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from flows_engine.handoff.run_request import Sender, is_study_id

RECORD_NAME: Final = "study.json"
INPUT_NAME: Final = "input"


class TagColumn(BaseModel):
    """One tag over all instances of a study: each distinct (multi-)value once, and which instance has which.

    ``values[index[i]]`` is the value list of instance ``i``; -1 means that the instance lacks the tag.
    """

    model_config = ConfigDict(frozen=True, hide_input_in_errors=True)

    values: tuple[tuple[str, ...], ...]
    index: tuple[int, ...]


class Fingerprint(BaseModel):
    """The searchable header of every instance of a study, column by column.

    Keys are tags as ``GGGGEEEE`` in upper-case hexadecimal. ``instance_count`` is the length of every ``index``.
    """

    model_config = ConfigDict(frozen=True, hide_input_in_errors=True)

    instance_count: int
    columns: dict[str, TagColumn]
    left_out_count: int = 0
    """How many elements of the study are in no column, since it has more distinct tags than are kept."""


class StudyRecord(BaseModel):
    """What ``study.json`` says. It holds patient data and never leaves the disk of the site."""

    model_config = ConfigDict(frozen=True, hide_input_in_errors=True)

    study_id: str
    sender: Sender
    called_ae_title: str
    received_at: datetime
    complete: bool
    """False where the association ended other than by a release: instances may be missing."""
    instance_count: int
    duplicate_count: int
    conflict_count: int
    size_bytes: int
    fingerprint: Fingerprint
    new_instance_count: int | None = None
    """How many of the instances came with this study, and not with ``earlier_study_id``; None: all of them."""
    earlier_study_id: str = ""
    """The study whose instances are part of this one, since more of it came later; empty where there is none."""


class StudyNotFoundError(LookupError):
    """No such study is in the store: it never was, its files are gone, or its record is damaged."""


class StudyAbsentError(StudyNotFoundError):
    """Nothing is in the store where the study or its files would be."""


class StudyStore:
    """The folder ``DATA_DIR/studies``."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def folder(self, study_id: str) -> Path:
        """Return where a study lies, whether or not it is there; ``StudyNotFoundError`` for what is no study id."""
        if not is_study_id(study_id):
            # What was typed instead may be a patient's name.
            raise StudyNotFoundError(
                "what is given is no study id, which looks like 0193e4c2-7a54-7cc3-98c4-dc0c0c07398f; "
                "`dicomflow studies` lists them"
            )
        return self.root / study_id

    def study_ids(self) -> Iterator[str]:
        """Yield the id of every study in the store, oldest first."""
        if self.root.is_dir():
            yield from sorted(entry.name for entry in self.root.iterdir() if is_study_id(entry.name))

    def input_folder(self, study_id: str) -> Path:
        """Return the folder of a study's instances; ``StudyNotFoundError`` if it is not there."""
        folder = self.folder(study_id) / INPUT_NAME
        if not folder.is_dir():
            raise StudyAbsentError(f"the files of study {study_id} are not in {self.root}")
        return folder

    def record(self, study_id: str) -> StudyRecord:
        """Return what is known of a study; ``StudyNotFoundError`` if it is not there, or cannot be read."""
        path = self.folder(study_id) / RECORD_NAME
        try:
            record = StudyRecord.model_validate_json(path.read_bytes())
        except FileNotFoundError:
            raise StudyAbsentError(f"study {study_id} is not in {self.root}") from None
        except ValidationError as error:
            # Its text shows what was read, which is of a patient.
            raise StudyNotFoundError(
                f"the record of study {study_id} is damaged ({error.error_count()} of its values cannot be used); "
                f"put {path} back from a backup, or have the study sent again"
            ) from None
        if record.study_id != study_id:
            raise StudyNotFoundError(f"{path} is the record of another study; give its folder back the name it had")
        return record


StudyOutcome = Literal["received", "triggered", "no-match", "held"]
