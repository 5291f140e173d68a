"""Where the instances of open associations lie until their association ends.

Layout, below ``DATA_DIR/spool``::

    <reception>/reception.json       who sends, since when; there before the first instance is acknowledged
    <reception>/<n>.part             an instance that is being written; never acknowledged
    <reception>/<group>/input/…      the acknowledged instances of one patient, already laid out as models will see them
    <reception>/<group>/study.json   there once the group is closed, and about to become ``studies/<study_id>``

Reception and group are opaque: no name on the way down to ``input`` says whose instances these are.
"""

from __future__ import annotations

import logging
import shutil
import threading
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Final, Literal

from pydantic import BaseModel, ConfigDict, ValidationError
from pydicom.uid import DeflatedExplicitVRLittleEndian
from uuid_utils import uuid7

from dicom_gateway import durable_files
from dicom_gateway.errors import InstanceRefusedError, SpoolFullError
from dicom_gateway.grouping import Patients
from flows_engine.handoff.fingerprint import FingerprintBuilder
from flows_engine.handoff.header import Header, UnreadableError, read_file_header, read_header
from flows_engine.handoff.layout import Layout
from flows_engine.handoff.run_request import Sender
from flows_engine.handoff.study_store import INPUT_NAME, RECORD_NAME, Fingerprint, StudyRecord

_log = logging.getLogger(__name__)

_RECEPTION_NAME: Final = "reception.json"
_SOP_INSTANCE_UID: Final = 0x00080018
_ONE_INFLATED_AT_A_TIME: Final = threading.Lock()
"""Bounds what all senders together can make grow in memory."""

Stored = Literal["stored", "duplicate", "conflict"]


class Origin(BaseModel):
    """What is known of a reception besides its instances."""

    model_config = ConfigDict(frozen=True, hide_input_in_errors=True)

    sender: Sender
    called_ae_title: str
    received_at: datetime


_UNKNOWN_ORIGIN: Final = Origin(
    sender=Sender(ae_title="UNKNOWN", host="", port=0),
    called_ae_title="UNKNOWN",
    received_at=datetime.fromtimestamp(0, tz=UTC),
)


@dataclass(frozen=True, kw_only=True)
class ReceivedInstance:
    """One object as the sender gave it. The UIDs are those of the C-STORE command, and already known to be UIDs.

    ``file_meta`` is preamble, prefix and file meta information (PS3.10 7.1); ``data_set`` follows it bit for bit.
    """

    sop_instance_uid: str
    transfer_syntax_uid: str
    file_meta: bytes
    data_set: bytes


@dataclass(frozen=True, kw_only=True)
class SpooledStudy:
    """A closed group: its folder in the spool, and the record that will travel with it.

    ``problem`` says why nothing can be decided on it, and is empty otherwise.
    """

    folder: Path
    record: StudyRecord
    problem: str = ""


class Spool:
    """The folder ``DATA_DIR/spool``. ``root`` must exist."""

    def __init__(self, root: Path, *, layout: Layout) -> None:
        self.root = root
        self._layout = layout

    def open(self, *, sender: Sender, called_ae_title: str, received_at: datetime) -> Reception:
        """Return the place for one association's instances. Nothing is on disk before the first of them."""
        origin = Origin(sender=sender, called_ae_title=called_ae_title, received_at=received_at)
        return Reception(self.root / str(uuid7()), origin=origin, layout=self._layout)

    def leftovers(self) -> Iterator[SpooledStudy]:
        """Yield what an earlier, killed gateway acknowledged and had not moved on; throw away what it never
        acknowledged.

        A group that was closed comes back as it was closed; an open one comes back as incomplete. Only for a spool that
        nobody else uses.
        """
        for folder in sorted(entry for entry in self.root.iterdir() if entry.is_dir()):
            yield from _leftovers_of(folder)
            tidy(folder)


class Reception:
    """The instances of one association, split by patient. Safe to use from several threads.

    Promises: when ``store`` returns, the instance survives a power cut; when it raises, nothing of it is left.
    """

    def __init__(self, folder: Path, *, origin: Origin, layout: Layout) -> None:
        self.id = folder.name
        self._folder = folder
        self._origin = origin
        self._layout = layout
        self._lock = threading.Lock()
        self._patients = Patients()
        self._groups: dict[int, _Group] = {}
        self._opened = False
        self._closed = False
        self._parts = 0

    def store(self, instance: ReceivedInstance) -> Stored:
        """Keep an instance durably, and return whether it was new.

        The same bytes under the same UID are kept once; other bytes under the same UID are kept beside the first.
        Raises ``InstanceRefusedError`` (unreadable, cut short, other UID in the data set than in the command) and
        ``SpoolFullError``.
        """
        header = _checked_header(instance)
        with self._lock:
            if self._closed:
                raise InstanceRefusedError("the association has ended", status=0x0110)
            try:
                return self._store(instance, header)
            except OSError as error:
                raise SpoolFullError(f"the spool cannot take an instance: {error.strerror or 'write error'}") from error

    def close(self, *, complete: bool) -> tuple[SpooledStudy, ...]:
        """Take no more instances, and return one study a patient. Called again, there is nothing left to return."""
        with self._lock:
            if self._closed:
                return ()
            self._closed = True
            for group in self._groups.values():
                if not group.builder.instance_count:
                    shutil.rmtree(group.folder, ignore_errors=True)
            studies = tuple(
                group.study(self._origin, complete=complete)
                for group in self._groups.values()
                if group.builder.instance_count
            )
            if not studies:
                shutil.rmtree(self._folder, ignore_errors=True)
            return studies

    def _store(self, instance: ReceivedInstance, header: Header) -> Stored:
        self._open_on_disk()
        group = self._group(self._patients.number(header, sop_instance_uid=instance.sop_instance_uid))
        earlier = group.paths.get(instance.sop_instance_uid, [])
        if any(_holds(path, instance) for path in earlier):
            group.duplicate_count += 1
            return "duplicate"
        place = self._layout.place(header, sop_instance_uid=instance.sop_instance_uid, copy=len(earlier) + 1)
        path = group.folder / INPUT_NAME / place
        _make_shared_folders(path.parent, below=group.folder)
        self._parts += 1
        durable_files.write_file(
            path,
            instance.file_meta,
            instance.data_set,
            temporary=self._folder / f"{self._parts}.part",
            mode=durable_files.SHARED_FILE,
        )
        group.paths.setdefault(instance.sop_instance_uid, []).append(path)
        group.size_bytes += len(instance.file_meta) + len(instance.data_set)
        group.builder.add(header)
        if not earlier:
            return "stored"
        group.conflict_count += 1
        return "conflict"

    def _open_on_disk(self) -> None:
        if self._opened:
            return
        durable_files.make_folder(self._folder, mode=durable_files.PRIVATE_FOLDER)
        durable_files.write_file(
            self._folder / _RECEPTION_NAME,
            self._origin.model_dump_json(indent=1).encode(),
            temporary=self._folder / f"{_RECEPTION_NAME}.part",
            mode=durable_files.PRIVATE_FILE,
        )
        self._opened = True

    def _group(self, number: int) -> _Group:
        group = self._groups.get(number)
        if group is None:
            folder = self._folder / str(number)
            durable_files.make_folder(folder, mode=durable_files.SHARED_FOLDER)
            group = self._groups[number] = _Group(folder=folder)
        return group


@dataclass(kw_only=True)
class _Group:
    folder: Path
    builder: FingerprintBuilder = field(default_factory=FingerprintBuilder)
    paths: dict[str, list[Path]] = field(default_factory=dict)
    duplicate_count: int = 0
    conflict_count: int = 0
    size_bytes: int = 0

    def study(self, origin: Origin, *, complete: bool) -> SpooledStudy:
        """Return the closed group, without a fingerprint where one cannot be built. Never raises."""
        try:
            fingerprint, problem = self.builder.build(), ""
        except Exception as error:  # noqa: BLE001  # acknowledged instances are kept, whatever stands in them
            fingerprint, problem = Fingerprint(instance_count=0, columns={}), _no_fingerprint(error)
        record = StudyRecord(
            study_id=str(uuid7()),
            sender=origin.sender,
            called_ae_title=origin.called_ae_title,
            received_at=origin.received_at,
            complete=complete,
            instance_count=self.builder.instance_count,
            duplicate_count=self.duplicate_count,
            conflict_count=self.conflict_count,
            size_bytes=self.size_bytes,
            fingerprint=fingerprint,
        )
        return SpooledStudy(folder=self.folder, record=record, problem=problem)


def write_record(study: SpooledStudy) -> None:
    """Put ``study.json`` into a closed group, durably. From here on a restart finds it as it was closed."""
    durable_files.write_file(
        study.folder / RECORD_NAME,
        study.record.model_dump_json().encode(),
        temporary=study.folder.parent / f"{study.folder.name}.{RECORD_NAME}.part",
        mode=durable_files.PRIVATE_FILE,
    )


def tidy(reception_folder: Path) -> None:
    """Remove a reception's folder once no group is left in it."""
    if reception_folder.is_dir() and not any(entry.is_dir() for entry in reception_folder.iterdir()):
        shutil.rmtree(reception_folder, ignore_errors=True)


def _checked_header(instance: ReceivedInstance) -> Header:
    deflated = instance.transfer_syntax_uid == DeflatedExplicitVRLittleEndian
    try:
        with _ONE_INFLATED_AT_A_TIME if deflated else nullcontext():
            header = read_header(instance.data_set, transfer_syntax_uid=instance.transfer_syntax_uid)
    except UnreadableError as error:
        raise InstanceRefusedError(f"the data set cannot be read: {error}", status=0xC000) from None
    if header.text(_SOP_INSTANCE_UID) != instance.sop_instance_uid:
        reason = "the data set has no SOP Instance UID, or another one than the command"
        raise InstanceRefusedError(reason, status=0xA900)
    return header


def _holds(path: Path, instance: ReceivedInstance) -> bool:
    with path.open("rb") as file:
        return file.read() == instance.file_meta + instance.data_set


def _make_shared_folders(folder: Path, *, below: Path) -> None:
    if folder != below and not folder.is_dir():
        _make_shared_folders(folder.parent, below=below)
        durable_files.make_folder(folder, mode=durable_files.SHARED_FOLDER)


def _leftovers_of(folder: Path) -> Iterator[SpooledStudy]:
    for part in folder.glob("*.part"):
        part.unlink()
    try:
        origin = Origin.model_validate_json((folder / _RECEPTION_NAME).read_bytes())
    except (FileNotFoundError, ValidationError):
        _log.error("reception.json is damaged, or not there", extra={"action": "recover", "reception": folder.name})
        origin = _UNKNOWN_ORIGIN
    for group_folder in sorted(entry for entry in folder.iterdir() if entry.is_dir()):
        study = _closed(group_folder) or _rebuilt(group_folder, origin)
        if study is None:
            shutil.rmtree(group_folder)
        else:
            yield study


def _closed(folder: Path) -> SpooledStudy | None:
    try:
        return SpooledStudy(folder=folder, record=StudyRecord.model_validate_json((folder / RECORD_NAME).read_bytes()))
    except (FileNotFoundError, ValidationError):
        return None


def _rebuilt(folder: Path, origin: Origin) -> SpooledStudy | None:
    group = _Group(folder=folder)
    paths = sorted((folder / INPUT_NAME).rglob("*.dcm"))
    if not paths:
        return None
    try:
        _read_again(group, paths)
    except Exception as error:  # noqa: BLE001  # one group must not keep the gateway from starting; it is kept
        study = group.study(origin, complete=False)
        counted = study.record.model_copy(
            update={"instance_count": len(paths), "fingerprint": Fingerprint(instance_count=0, columns={})}
        )
        return SpooledStudy(folder=folder, record=counted, problem=_no_fingerprint(error))
    return group.study(origin, complete=False)


def _read_again(group: _Group, paths: list[Path]) -> None:
    for path in paths:
        content = path.read_bytes()
        try:
            header = read_file_header(content)
        except UnreadableError:
            # It was acknowledged, so it is kept; only the disk itself can have damaged it since.
            _log.warning(
                "an instance in the spool is damaged",
                extra={"action": "recover", "reception": group.folder.parent.name},
            )
            header = Header(elements={}, little_endian=True)
        group.builder.add(header)
        group.size_bytes += len(content)
        group.conflict_count += "_" in path.name


def _no_fingerprint(error: Exception) -> str:
    return f"its headers cannot be searched ({type(error).__name__}); have the study sent again"
