"""Which instances lie safely on disk, and which do not: what storage commitment vouches for."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from pydicom.uid import DeflatedExplicitVRLittleEndian

from dicom_gateway.commitment import CLASS_CONFLICT, NO_SUCH_INSTANCE, PROCESSING_FAILURE, Reference
from dicom_gateway.durable_files import sync_file_system
from dicom_gateway.errors import LedgerSilentError
from dicom_gateway.instance_lookup import instance_lookup
from dicom_gateway.part10_head import HeadError, read_part10_head
from dicom_gateway.reception import INCOMING_NAME, Durability
from dicom_gateway.uid_key import UidKey, find_uid_key
from flows_engine.handoff.header import UnreadableError
from flows_engine.handoff.header_file import read_open_file_header
from flows_engine.handoff.study_store import StudyNotFoundError, StudyStore

_WHOLE: Final = stat.S_IROTH
_HEAD_BYTES: Final = 2048
_DAMAGED: Final = ""


@dataclass(frozen=True, kw_only=True)
class Look:
    """What one look found. ``failures`` are the reasons of those that are not committed (PS3.3 C.14.1.1).

    Where ``may_change``, one of them may be on its way from the spool to the store: another look may find it.
    """

    failures: Mapping[Reference, int]
    may_change: bool


class CommittedInstances:
    """The instances of a DATA_DIR, for any process of the gateway.

    An instance counts where its file is whole. With a durability by which what is acknowledged is not on the disk at
    once, it is forced there first.
    """

    def __init__(self, data_dir: Path, *, ledger: Path, durability: Durability) -> None:
        self._data_dir = data_dir
        self._ledger = ledger
        self._store = StudyStore(data_dir / "studies")
        self._durability = durability

    def look(self, references: Sequence[Reference]) -> Look:
        """Look for instances. Raises nothing: what cannot be looked at is not committed."""
        uids = {reference.sop_instance_uid for reference in references}
        try:
            # In the order in which they move on, so that none is missed on its way.
            places, receptions = _in_spool(self._data_dir / "spool", uids)
            is_moving = any(map(_is_moving, receptions))
            key = find_uid_key(self._data_dir)
            is_indexed = True
            if key is not None and uids - set(places):
                with instance_lookup(self._ledger) as lookup:
                    is_indexed = lookup.is_complete
                    studies = lookup.studies(key.instance_hashes(uids - set(places)))
                places |= self._in_store(uids - set(places), studies, key)
            classes = {uid: _class_of(path, uid) for uid, path in places.items()}
            if self._durability != "instance":
                _sync(self._data_dir)
        except (OSError, LedgerSilentError):
            return Look(failures=dict.fromkeys(references, PROCESSING_FAILURE), may_change=True)
        failures = {one: reason for one in references if (reason := _failure(one, classes))}
        may_change = is_moving or not is_indexed or None in classes.values()
        return Look(failures=failures, may_change=bool(failures) and may_change)

    def _in_store(
        self, uids: Iterable[str], studies: Mapping[bytes, tuple[str, ...]], key: UidKey
    ) -> Mapping[str, Path]:
        places = {}
        files_of: dict[str, Mapping[str, Path]] = {}
        for uid in uids:
            for study_id in studies[key.instance_hash(uid)]:
                if study_id not in files_of:
                    files_of[study_id] = self._files(study_id)
                path = files_of[study_id].get(f"{uid}.dcm")
                if path is not None:
                    places[uid] = path
                    break
        return places

    def _files(self, study_id: str) -> Mapping[str, Path]:
        try:
            folder = self._store.input_folder(study_id)
        except StudyNotFoundError:
            return {}
        return {name: Path(parent) / name for parent, _, names in os.walk(folder) for name in names}


def _failure(reference: Reference, classes: Mapping[str, str | None]) -> int | None:
    if reference.sop_instance_uid not in classes:
        return NO_SUCH_INSTANCE
    sop_class_uid = classes[reference.sop_instance_uid]
    if not sop_class_uid:
        return PROCESSING_FAILURE
    return None if sop_class_uid == reference.sop_class_uid else CLASS_CONFLICT


def _in_spool(spool: Path, uids: set[str]) -> tuple[dict[str, Path], list[Path]]:
    """Return where those are that lie as they were received, and all receptions there were."""
    receptions = [Path(entry) for entry in _entries(spool) if entry.is_dir()]
    wanted = {f"{uid}.dcm" for uid in uids}
    places = {}
    for reception in receptions:
        for entry in _entries(reception / INCOMING_NAME):
            if entry.name in wanted and _is_whole(entry):
                places[entry.name.removesuffix(".dcm")] = Path(entry)
    return places, receptions


def _is_moving(reception: Path) -> bool:
    """Whether instances of a reception may lie where nobody looked. One that is gone is in the ledger."""
    names = {entry.name for entry in _entries(reception) if entry.is_dir()}
    return reception.is_dir() and names != {INCOMING_NAME}


def _entries(folder: Path) -> Iterator[os.DirEntry[str]]:
    try:
        with os.scandir(folder) as entries:
            yield from entries
    except FileNotFoundError:
        return


def _is_whole(entry: os.DirEntry[str]) -> bool:
    with suppress(FileNotFoundError):
        return bool(entry.stat(follow_symlinks=False).st_mode & _WHOLE)
    return False


def _class_of(path: Path, uid: str) -> str | None:
    """Return the SOP class that a file says it is of; nothing where it is not whole, or not what its name says; None
    where it has moved on.
    """
    try:
        with path.open("rb") as file:
            head = read_part10_head(file.read(_HEAD_BYTES))
            if head is None or head.sop_instance_uid != uid:
                return _DAMAGED
            # To inflate one would take its size in memory; that its end is there was seen when it came.
            if head.transfer_syntax_uid != DeflatedExplicitVRLittleEndian:
                read_open_file_header(file.fileno())
            return head.sop_class_uid
    except FileNotFoundError:
        return None
    except (HeadError, UnreadableError):
        return _DAMAGED


def _sync(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        sync_file_system(descriptor)
    finally:
        os.close(descriptor)
