"""What has been received and is not in the store yet: from the files of a reception to the studies in it.

Layout, below ``DATA_DIR/spool``, beside what ``reception`` writes::

    <reception>/<group>/input/…      the instances of one patient, laid out as models will see them
    <reception>/<group>/study.json   there once the group is closed, and about to become ``studies/<study_id>``

Reception and group are opaque: no name on the way down to ``input`` says whose instances these are. Everything here is
made from what lies on disk, and may be cut short and done again: a reception whose gateway was killed is no other case.
"""

from __future__ import annotations

import hashlib
import logging
import os
import shutil
import stat
from collections import Counter
from collections.abc import Collection, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Final, Literal

from pydantic import ValidationError
from uuid_utils import uuid7

from dicom_gateway import durable_files
from dicom_gateway.disk_room import DiskRoom
from dicom_gateway.grouping import Patients
from dicom_gateway.reception import (
    INCOMING_NAME,
    RECEPTION_NAME,
    RELEASED_NAME,
    Durability,
    Origin,
    Reception,
    free_name,
)
from flows_engine.handoff.fingerprint import FingerprintBuilder
from flows_engine.handoff.header import Header, UnreadableError
from flows_engine.handoff.header_file import read_file_header_at
from flows_engine.handoff.layout import Layout
from flows_engine.handoff.run_request import Sender
from flows_engine.handoff.study_store import INPUT_NAME, RECORD_NAME, Fingerprint, StudyRecord

_log = logging.getLogger(__name__)

OnConflict = Literal["keep_both", "replace", "reject"]
"""What becomes of an instance whose UID came before with other content."""

_WHOLE: Final = stat.S_IROTH

_UNKNOWN_ORIGIN: Final = Origin(
    sender=Sender(ae_title="UNKNOWN", host="", port=0),
    called_ae_title="UNKNOWN",
    received_at=datetime.fromtimestamp(0, tz=UTC),
)


@dataclass(frozen=True, kw_only=True)
class SpooledStudy:
    """A closed group: its folder in the spool, and the record that will travel with it.

    ``problem`` says why nothing can be decided on it, and is empty otherwise.
    """

    folder: Path
    record: StudyRecord
    problem: str = ""


class Spool:
    """The folder ``DATA_DIR/spool``. ``root`` must exist. Who only opens receptions needs no ``layout``."""

    def __init__(
        self,
        root: Path,
        *,
        layout: Layout | None = None,
        durability: Durability = "instance",
        room: DiskRoom | None = None,
        on_conflict: OnConflict = "keep_both",
    ) -> None:
        self.root = root
        self._on_conflict = on_conflict
        self._room = room
        self._layout = layout or Layout([])
        self._durability = durability

    def open(self, *, sender: Sender, called_ae_title: str, received_at: datetime) -> Reception:
        """Return the place for one association's instances. Nothing is on disk before the first of them."""
        origin = Origin(sender=sender, called_ae_title=called_ae_title, received_at=received_at)
        return Reception(
            self.root / str(uuid7()),
            origin=origin,
            durability=self._durability,
            room=self._room,
            rejects_conflicts=self._on_conflict == "reject",
        )

    def collect(self, reception_id: str, *, complete: bool) -> tuple[SpooledStudy, ...]:
        """Return the studies of a reception into which nothing more will come, one a patient.

        Raises ``OSError`` where the disk refuses. Called again, it begins anew with what was not closed.
        """
        folder = self.root / reception_id
        if not folder.is_dir():
            return ()
        for part in folder.glob("*.part"):
            part.unlink()
        closed = [study for study in map(_closed, _folders(folder)) if study is not None]
        _undo(folder, keep={study.folder for study in closed})
        if self._durability == "association" and not (folder / RELEASED_NAME).exists():
            _sync_file_system_of(folder)
        collection = _Collection(folder, layout=self._layout, on_conflict=self._on_conflict)
        numbers = (str(number) for number in range(len(closed) + collection.group_count))
        free = [number for number in numbers if not (folder / number).exists()]
        places = [folder / number for number in free]
        studies = collection.close(places, _origin(folder), complete=complete) if collection.group_count else ()
        if not closed and not studies:
            shutil.rmtree(folder, ignore_errors=True)
        return (*closed, *studies)

    def ids(self) -> list[str]:
        """Return the ids of all that lies here, oldest first."""
        return sorted(entry.name for entry in self.root.iterdir() if entry.is_dir())

    def is_released(self, reception_id: str) -> bool:
        """Tell whether its sender has said that it was complete."""
        return (self.root / reception_id / RELEASED_NAME).exists()

    def is_closing(self, reception_id: str) -> bool:
        """Tell whether ``collect`` has begun on it."""
        folder = self.root / reception_id
        return folder.is_dir() and bool(_folders(folder))

    def origin(self, reception_id: str) -> Origin | None:
        """Return who sent it, and since when; None where that is not known, or it is gone."""
        try:
            return Origin.model_validate_json((self.root / reception_id / RECEPTION_NAME).read_bytes())
        except (FileNotFoundError, NotADirectoryError, ValidationError):
            return None

    def sender(self, reception_id: str) -> str:
        """Return the AE title of who sent it."""
        return _origin(self.root / reception_id).sender.ae_title if (self.root / reception_id).is_dir() else ""

    def names(self, reception_id: str, *, but: Collection[str] = ()) -> Iterator[str]:
        """Yield the names of its whole instances, but those of ``but``. They are opaque, and begin with the UID."""
        try:
            with os.scandir(self.root / reception_id / INCOMING_NAME) as entries:
                found = list(entries)
        except FileNotFoundError:
            return
        for entry in found:
            # What is gone meanwhile was half, and discarded.
            with suppress(FileNotFoundError):
                if entry.name not in but and entry.stat(follow_symlinks=False).st_mode & _WHOLE:
                    yield entry.name

    def headers(self, reception_id: str, *, but: Collection[str] = ()) -> Iterator[tuple[str, Header]]:
        """Yield each of its whole instances with its header; one without elements where it cannot be read."""
        for name in self.names(reception_id, but=but):
            try:
                yield name, read_file_header_at(self.root / reception_id / INCOMING_NAME / name)
            except UnreadableError:
                yield name, Header(elements={}, little_endian=True)

    def open_beside(self, reception_id: str) -> str:
        """Return the id of a new, empty place for instances of the same sender, durably."""
        folder = self.root / str(uuid7())
        origin = _origin(self.root / reception_id)
        try:
            durable_files.make_folder(folder, mode=durable_files.PRIVATE_FOLDER)
            durable_files.write_file(
                folder / RECEPTION_NAME,
                origin.model_dump_json(indent=1).encode(),
                temporary=folder / f"{RECEPTION_NAME}.part",
                mode=durable_files.PRIVATE_FILE,
            )
            durable_files.make_folder(folder / INCOMING_NAME, mode=durable_files.SHARED_FOLDER)
        except OSError:
            # Who tries again gets another place, and nobody would come back to this one.
            shutil.rmtree(folder, ignore_errors=True)
            raise
        return folder.name

    def move(self, names: Iterable[str], reception_id: str, target_id: str) -> None:
        """Move instances from one place to another, durably."""
        source, target = (self.root / one / INCOMING_NAME for one in (reception_id, target_id))
        durable_files.make_folder(target, mode=durable_files.SHARED_FOLDER)
        for name in names:
            (source / name).rename(target / free_name(target, _uid(name)))
        durable_files.sync_folder(target)

    def link(self, files: Iterable[Path], target_id: str) -> None:
        """Have instances of the store here as well, durably; they are the same files under a second name."""
        target = self.root / target_id / INCOMING_NAME
        durable_files.make_folder(target, mode=durable_files.SHARED_FOLDER)
        for path in files:
            (target / free_name(target, _uid(path.name))).hardlink_to(path)
        durable_files.sync_folder(target)

    def remove(self, reception_id: str) -> None:
        """Remove a place of which every instance has been moved. What is half in it is thrown away."""
        if not any(self.names(reception_id)) and not self.is_closing(reception_id):
            shutil.rmtree(self.root / reception_id, ignore_errors=True)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Instance:
    path: Path
    uid: str
    size_bytes: int
    modified_ns: int
    is_of_earlier_study: bool
    """Whether the file lies in the store as well, see ``Spool.link``."""


@dataclass(kw_only=True)
class _Group:
    """What is known of one patient's instances."""

    builder: FingerprintBuilder = field(default_factory=FingerprintBuilder)
    copies: dict[str, int] = field(default_factory=dict)
    places: dict[Path, str] = field(default_factory=dict)
    problem: str = ""
    duplicate_count: int = 0
    conflict_count: int = 0
    new_count: int = 0
    size_bytes: int = 0

    def add(self, instance: _Instance, header: Header, layout: Layout) -> None:
        """Take an instance that is to be kept."""
        copy = self.copies[instance.uid] = self.copies.get(instance.uid, 0) + 1
        self.places[instance.path] = str(layout.place(header, sop_instance_uid=instance.uid, copy=copy))
        self.size_bytes += instance.size_bytes
        self.new_count += not instance.is_of_earlier_study
        try:
            self.builder.add(header)
        except Exception as error:  # noqa: BLE001  # one group must not keep the others from being kept; this one is held
            self.problem = _no_fingerprint(error)

    def study(self, folder: Path, origin: Origin, *, complete: bool) -> SpooledStudy:
        """Return the closed group, without a fingerprint where one cannot be built. Never raises."""
        fingerprint = Fingerprint(instance_count=0, columns={})
        if self.builder.instance_count == len(self.places):
            try:
                fingerprint = self.builder.build()
            except Exception as error:  # noqa: BLE001  # acknowledged instances are kept, whatever stands in them
                self.problem = _no_fingerprint(error)
        record = StudyRecord(
            study_id=str(uuid7()),
            sender=origin.sender,
            called_ae_title=origin.called_ae_title,
            received_at=origin.received_at,
            complete=complete,
            instance_count=len(self.places),
            duplicate_count=self.duplicate_count,
            conflict_count=self.conflict_count,
            size_bytes=self.size_bytes,
            fingerprint=fingerprint,
            new_instance_count=self.new_count,
        )
        return SpooledStudy(folder=folder, record=record, problem=self.problem)


class _Reunion:
    """What is kept of instances that share a UID. The very same is kept once; ``on_conflict`` says what else is."""

    def __init__(self, instances: Iterable[_Instance], *, on_conflict: OnConflict) -> None:
        self.duplicates: dict[str, int] = {}
        self.conflicts: dict[str, int] = {}
        by_uid: dict[str, list[_Instance]] = {}
        contents: dict[str, set[tuple[int, bytes]]] = {}
        instances = list(instances)
        more_than_one = {uid for uid, count in Counter(instance.uid for instance in instances).items() if count > 1}
        for instance in instances:
            others = by_uid.setdefault(instance.uid, [])
            content = _content(instance) if instance.uid in more_than_one else (0, b"")
            if others and content in contents[instance.uid]:
                self.duplicates[instance.uid] = self.duplicates.get(instance.uid, 0) + 1
                instance.path.unlink()
                continue
            if others:
                self.conflicts[instance.uid] = self.conflicts.get(instance.uid, 0) + 1
            if others and on_conflict == "replace":
                others.pop().path.unlink()
                contents[instance.uid].clear()
            others.append(instance)
            contents.setdefault(instance.uid, set()).add(content)
        self.kept = [instance for others in by_uid.values() for instance in others]


class _Collection:
    """The instances of one reception, split by patient."""

    def __init__(self, folder: Path, *, layout: Layout, on_conflict: OnConflict) -> None:
        self._incoming = folder / INCOMING_NAME
        self._layout = layout
        self._groups: dict[int, _Group] = {}
        patients = Patients()
        instances = sorted(_instances(self._incoming), key=_order_of_arrival)
        reunion = _Reunion(instances, on_conflict=on_conflict)
        for instance in reunion.kept:
            try:
                header, problem = read_file_header_at(instance.path), ""
            except UnreadableError as error:
                # It was acknowledged, so it is kept, by itself: nobody can say whose it is.
                header = Header(elements={}, little_endian=True)
                problem = f"an instance of it cannot be read: {error}; have it sent again"
            number = patients.number(header, sop_instance_uid=instance.uid)
            group = self._groups.setdefault(number, _Group(problem=problem))
            group.add(instance, header, layout)
            group.duplicate_count += reunion.duplicates.pop(instance.uid, 0)
            group.conflict_count += reunion.conflicts.pop(instance.uid, 0)

    @property
    def group_count(self) -> int:
        """How many patients there are."""
        return len(self._groups)

    def close(self, folders: list[Path], origin: Origin, *, complete: bool) -> tuple[SpooledStudy, ...]:
        """Lay each group out, durably, below one of ``folders``, and return the studies."""
        as_they_lie = self._layout.is_flat and len(self._groups) == 1 and not self._have_gaps()
        for group, folder in zip(self._groups.values(), folders, strict=False):
            durable_files.make_folder(folder, mode=durable_files.SHARED_FOLDER)
            if as_they_lie:
                # Nearly always: all are moved at once, by the folder that they are in.
                durable_files.sync_folder(self._incoming)
                self._incoming.rename(folder / INPUT_NAME)
            else:
                _lay_out(group.places, folder / INPUT_NAME)
            durable_files.sync_folder(folder)
        return tuple(
            group.study(folder, origin, complete=complete)
            for group, folder in zip(self._groups.values(), folders, strict=False)
        )

    def _have_gaps(self) -> bool:
        """Whether an instance would have another name if those were not there that are thrown away."""
        return any(path.name != place for group in self._groups.values() for path, place in group.places.items())


def write_record(study: SpooledStudy) -> None:
    """Put ``study.json`` into a closed group, durably. From here on a restart finds it as it was closed."""
    durable_files.write_file(
        study.folder / RECORD_NAME,
        study.record.model_dump_json().encode(),
        temporary=study.folder.parent / f"{study.folder.name}.{RECORD_NAME}.part",
        mode=durable_files.PRIVATE_FILE,
    )


def tidy(reception_folder: Path) -> None:
    """Remove a reception's folder once no instance is left in it."""
    if reception_folder.is_dir() and not any(_folders(reception_folder)):
        incoming = reception_folder / INCOMING_NAME
        if not incoming.is_dir() or not any(incoming.iterdir()):
            shutil.rmtree(reception_folder, ignore_errors=True)


def _uid(name: str) -> str:
    """Return the SOP Instance UID that the name of a file begins with."""
    return name.removesuffix(".dcm").partition("_")[0]


def _folders(reception_folder: Path) -> list[Path]:
    """Return the folders of its groups."""
    return sorted(entry for entry in reception_folder.iterdir() if entry.is_dir() and entry.name != INCOMING_NAME)


def _undo(folder: Path, *, keep: set[Path]) -> None:
    """Put back what was being laid out when a gateway was killed; what an older version left comes here as well."""
    for group in _folders(folder):
        if group in keep:
            continue
        incoming = folder / INCOMING_NAME
        durable_files.make_folder(incoming, mode=durable_files.SHARED_FOLDER)
        for path in sorted((group / INPUT_NAME).rglob("*.dcm")):
            path.rename(incoming / free_name(incoming, _uid(path.name)))
        durable_files.sync_folder(incoming)
        shutil.rmtree(group)


def _instances(incoming: Path) -> Iterator[_Instance]:
    """Yield what is whole; throw away what is not."""
    if not incoming.is_dir():
        return
    with os.scandir(incoming) as entries:
        for entry in list(entries):
            status = entry.stat(follow_symlinks=False)
            if not status.st_mode & _WHOLE:
                Path(entry).unlink()
                continue
            yield _Instance(
                path=Path(entry.path),
                uid=_uid(entry.name),
                size_bytes=status.st_size,
                modified_ns=status.st_mtime_ns,
                is_of_earlier_study=status.st_nlink > 1,
            )


def _lay_out(places: dict[Path, str], root: Path) -> None:
    folders = {root}
    durable_files.make_folder(root, mode=durable_files.SHARED_FOLDER)
    for path, place in places.items():
        target = root / place
        _make_shared_folders(target.parent, below=root)
        folders.add(target.parent)
        path.rename(target)
    for folder in folders:
        durable_files.sync_folder(folder)


def _make_shared_folders(folder: Path, *, below: Path) -> None:
    if folder != below and not folder.is_dir():
        _make_shared_folders(folder.parent, below=below)
        durable_files.make_folder(folder, mode=durable_files.SHARED_FOLDER)


def _order_of_arrival(instance: _Instance) -> tuple[bool, int, str]:
    """Put what was there before first, whatever a clock that was set back says of the rest."""
    return not instance.is_of_earlier_study, instance.modified_ns, instance.path.name


def _content(instance: _Instance) -> tuple[int, bytes]:
    """Return what tells one content from another: its size and its digest."""
    with instance.path.open("rb") as file:
        return instance.size_bytes, hashlib.file_digest(file, "sha256").digest()


def _sync_file_system_of(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        durable_files.sync_file_system(descriptor)
    finally:
        os.close(descriptor)


def _origin(folder: Path) -> Origin:
    try:
        return Origin.model_validate_json((folder / RECEPTION_NAME).read_bytes())
    except (FileNotFoundError, ValidationError):
        _log.error("reception.json is damaged, or not there", extra={"action": "recover", "reception": folder.name})
        return _UNKNOWN_ORIGIN


def _closed(folder: Path) -> SpooledStudy | None:
    try:
        return SpooledStudy(folder=folder, record=StudyRecord.model_validate_json((folder / RECORD_NAME).read_bytes()))
    except (FileNotFoundError, ValidationError):
        return None


def _no_fingerprint(error: Exception) -> str:
    return f"its headers cannot be searched ({type(error).__name__}); have the study sent again"
