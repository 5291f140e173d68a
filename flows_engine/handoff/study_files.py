"""The files of a stored study -> which they are, and what can be searched in them now."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field
from pathlib import Path

from flows_engine.handoff.fingerprint import FingerprintBuilder
from flows_engine.handoff.header import Header, UnreadableError
from flows_engine.handoff.header_file import read_deep_at
from flows_engine.handoff.study_store import Fingerprint, TagColumn


@dataclass(frozen=True, kw_only=True)
class StudyFiles:
    """The files of a study in alphabetical order; instance ``i`` of the fingerprint is ``files[i]``."""

    files: tuple[Path, ...]
    fingerprint: Fingerprint


def read_study(input_folder: Path, *, keys: Collection[str] = ()) -> StudyFiles:
    """Read the headers of all files below ``input_folder``, and the values of ``keys`` at whatever depth.

    The fingerprint has a column for each of ``keys``, also where no instance has it. A file that is damaged has no
    values at all. One file after the other is mapped into memory. Raises ``OSError`` and ``TooManyValuesError``.
    """
    files = tuple(sorted(path for path in input_folder.rglob("*") if path.is_file()))
    builder = FingerprintBuilder()
    columns = {key: _Column() for key in keys}
    for path in files:
        try:
            header, deep = read_deep_at(path, keys=keys)
        except UnreadableError:
            header, deep = Header(elements={}, little_endian=True), {}
        builder.add(header)
        for key, column in columns.items():
            column.add(deep.get(key))
    fingerprint = builder.build()
    deep_columns = {key: column.build() for key, column in columns.items()}
    return StudyFiles(
        files=files, fingerprint=fingerprint.model_copy(update={"columns": {**fingerprint.columns, **deep_columns}})
    )


@dataclass(slots=True)
class _Column:
    index: list[int] = field(default_factory=list)
    places: dict[tuple[str, ...], int] = field(default_factory=dict)

    def add(self, values: tuple[str, ...] | None) -> None:
        self.index.append(-1 if values is None else self.places.setdefault(values, len(self.places)))

    def build(self) -> TagColumn:
        return TagColumn(values=tuple(self.places), index=tuple(self.index))
