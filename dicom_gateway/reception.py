"""Where the instances of one open association are written. Its files outlive the process that writes them.

Layout, below ``DATA_DIR/spool``::

    <reception>/reception.json        who sends, since when; there before the first instance is acknowledged
    <reception>/incoming/<uid>.dcm    an instance; readable for all once it is whole, for its owner alone until then
    <reception>/released              there once the sender has said that this was all

A file's mode tells whole from half: it is one more attribute of what is written anyway, where a second name would cost
two more changes of the folder an instance. What is half was never acknowledged, and is thrown away (``collecting``).
"""

from __future__ import annotations

import errno
import itertools
import os
import threading
from collections.abc import Iterator
from contextlib import nullcontext, suppress
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import BinaryIO, Final, Literal

from pydantic import BaseModel, ConfigDict
from pydicom.uid import DeflatedExplicitVRLittleEndian, ExplicitVRBigEndian, ImplicitVRLittleEndian

from dicom_gateway import durable_files
from dicom_gateway.disk_room import DiskRoom
from dicom_gateway.errors import InstanceRefusedError, SpoolFullError
from dicom_gateway.file_meta import file_meta
from flows_engine.handoff.header import Header, UnreadableError, read_header
from flows_engine.handoff.header_file import read_open_file_header
from flows_engine.handoff.run_request import Sender

Durability = Literal["instance", "association", "none"]
"""When what was received is forced onto the disk: before each Success, before the release is answered, or never."""

RECEPTION_NAME: Final = "reception.json"
INCOMING_NAME: Final = "incoming"
RELEASED_NAME: Final = "released"

_SOP_INSTANCE_UID: Final = 0x00080018
_STUDY_INSTANCE_UID: Final = 0x0020000D
_UID_STANDS_WITHIN_BYTES: Final = 4096
_LOOKED_AT_BYTES: Final = 64 * 1024
"""What is kept of a data set in memory, to be looked at without its file. Many are no longer."""
_DUPLICATE_SOP_INSTANCE: Final = 0x0111  # PS3.7 C.4.3
_COMPARED_BYTES: Final = 1024 * 1024
_MOST_OF_ONE_UID: Final = 100
_HALF: Final = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
_ONE_INFLATED_AT_A_TIME: Final = threading.Lock()
"""Bounds what all senders of a process together can make grow in memory."""


class Origin(BaseModel):
    """What is known of a reception besides its instances."""

    model_config = ConfigDict(frozen=True, hide_input_in_errors=True)

    sender: Sender
    called_ae_title: str
    received_at: datetime


@dataclass(frozen=True, kw_only=True)
class ReceivedInstance:
    """One object as the sender gave it. The UIDs are those of the command, and already known to be UIDs."""

    sop_class_uid: str
    sop_instance_uid: str
    transfer_syntax_uid: str
    data_set: bytes


class Reception:
    """The place for one association's instances. Not safe to use from several threads.

    Promise, with the durability ``instance``: what ``IncomingInstance.commit`` has returned for survives a power cut,
    and can be read as DICOM. With ``association`` the first holds from ``seal`` on. Whatever the durability, it
    survives the death of the process.
    """

    def __init__(
        self,
        folder: Path,
        *,
        origin: Origin,
        durability: Durability,
        room: DiskRoom | None = None,
        rejects_conflicts: bool = False,
    ) -> None:
        self.id = folder.name
        self._rejects_conflicts = rejects_conflicts
        self._room = room
        self.durability = durability
        self._folder = folder
        self._origin = origin
        self._descriptor: int | None = None
        self._names_need_syncs = True

    @property
    def is_open(self) -> bool:
        """Whether anything of it is on disk."""
        return self._descriptor is not None

    def begin(
        self,
        *,
        sop_class_uid: str,
        sop_instance_uid: str,
        transfer_syntax_uid: str,
        study_instance_uid: str | None = None,
    ) -> IncomingInstance:
        """Begin a file. The UIDs are those of the C-STORE command, and known to be UIDs. Raises ``SpoolFullError``.

        With ``study_instance_uid``, the instance is refused unless it has that one.
        """
        if self._room is not None and not self._room.is_left():
            raise SpoolFullError("the disk has no room left but what is to stay free")
        try:
            folder = self._open_on_disk() if self._descriptor is None else self._descriptor
            name, descriptor = _new_file(folder, sop_instance_uid)
        except OSError as error:
            raise _full(error) from error
        return IncomingInstance(
            folder=folder,
            name=name,
            descriptor=descriptor,
            sop_instance_uid=sop_instance_uid,
            transfer_syntax_uid=transfer_syntax_uid,
            head=file_meta(
                sop_class_uid=sop_class_uid,
                sop_instance_uid=sop_instance_uid,
                transfer_syntax_uid=transfer_syntax_uid,
            ),
            is_synced=self.durability == "instance",
            name_needs_sync=self._names_need_syncs,
            must_not_differ=self._rejects_conflicts and name != f"{sop_instance_uid}.dcm",
            study_instance_uid=study_instance_uid,
        )

    def seal(self) -> None:
        """Note that the sender has said that this was all. Raises ``SpoolFullError``, and then it is not noted."""
        if self._descriptor is None:
            return
        try:
            if self.durability == "association":
                durable_files.sync_file_system(self._descriptor)
            released = self._folder / RELEASED_NAME
            released.touch(mode=durable_files.PRIVATE_FILE)
            if self.durability != "none":
                durable_files.sync_folder(self._folder)
        except OSError as error:
            raise _full(error) from error

    def close(self) -> None:
        """Write no more."""
        descriptor, self._descriptor = self._descriptor, None
        if descriptor is not None:
            os.close(descriptor)

    def store(self, instance: ReceivedInstance) -> None:
        """Keep an instance that is in memory. Raises as ``IncomingInstance.commit`` does."""
        incoming = self.begin(
            sop_class_uid=instance.sop_class_uid,
            sop_instance_uid=instance.sop_instance_uid,
            transfer_syntax_uid=instance.transfer_syntax_uid,
        )
        if instance.data_set:
            incoming.write(memoryview(instance.data_set))
        incoming.commit()

    def _open_on_disk(self) -> int:
        durable = self.durability != "none"
        incoming = self._folder / INCOMING_NAME
        durable_files.make_folder(self._folder, mode=durable_files.PRIVATE_FOLDER, durable=durable)
        durable_files.write_file(
            self._folder / RECEPTION_NAME,
            self._origin.model_dump_json(indent=1).encode(),
            temporary=self._folder / f"{RECEPTION_NAME}.part",
            mode=durable_files.PRIVATE_FILE,
            durable=durable,
        )
        durable_files.make_folder(incoming, mode=durable_files.SHARED_FOLDER, durable=durable)
        self._descriptor = descriptor = os.open(incoming, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        self._names_need_syncs = not durable_files.syncs_names_with_files(descriptor)
        return descriptor


class IncomingInstance:
    """One instance that is being written. Ends with ``commit`` or ``discard``.

    Several of a reception may be open at once, but not two of one UID: the later one may be held against the earlier.
    """

    def __init__(
        self,
        *,
        folder: int,
        name: str,
        descriptor: int,
        sop_instance_uid: str,
        transfer_syntax_uid: str,
        head: bytes,
        is_synced: bool,
        name_needs_sync: bool,
        must_not_differ: bool = False,
        study_instance_uid: str | None = None,
    ) -> None:
        self._must_not_differ = must_not_differ
        self._folder = folder
        self._name = name
        self._descriptor = descriptor
        self._sop_instance_uid = sop_instance_uid
        self._transfer_syntax_uid = transfer_syntax_uid
        self._head: bytes = head
        self._first = b""
        self._is_synced = is_synced
        self._name_needs_sync = name_needs_sync
        self._study_instance_uid = study_instance_uid
        self._is_checked = self._is_whole = False
        self.size_bytes = 0
        """How much of the data set has been written."""

    def write(self, fragment: memoryview) -> None:
        """Append a fragment of the data set. Raises ``SpoolFullError``, and then nothing of the instance is left."""
        try:
            if self._head:
                head, self._head = self._head, b""
                self._first = bytes(fragment[:_LOOKED_AT_BYTES])
                written = os.writev(self._descriptor, (head, fragment)) - len(head)
                if written < 0:
                    _write_all(self._descriptor, memoryview(head)[written:])
                    written = 0
            else:
                written = os.write(self._descriptor, fragment)
            if written < len(fragment):
                _write_all(self._descriptor, fragment[written:])
        except OSError as error:
            self.discard()
            raise _full(error) from error
        self.size_bytes += len(fragment)

    def end(self) -> None:
        """Check it now that it has come whole, and have the disk begin to write it. Raises as ``commit`` does.

        This and ``make_whole`` are for whoever commits several: each of them is done to all before the next, and the
        disk takes all their syncs as one.
        """
        try:
            self._check_all()
            if self._is_synced:
                durable_files.begin_to_write(self._descriptor)
        except (OSError, InstanceRefusedError) as error:
            raise self._failed(error) from error
        self._is_checked = True

    def make_whole(self) -> None:
        """Have its mode say that it is whole, once its content is on the disk. Raises as ``commit`` does.

        Left to ``commit`` where the file system has no journal known to us: there the mode of one file may come to the
        disk with another one's sync, and where its content lies may not.
        """
        if self._is_synced and self._name_needs_sync:
            return
        try:
            self._mark_whole()
        except OSError as error:
            raise self._failed(error) from error
        self._is_whole = True

    def commit(self) -> None:
        """Have it kept. Raises ``InstanceRefusedError`` or ``SpoolFullError``, and then nothing of it is left.

        When files are synced, the whole data set is checked before; else only that its UID is that of the command.
        """
        try:
            if not self._is_checked:
                self._check_all()
            if not self._is_whole:
                self._mark_whole()
            if self._is_synced:
                # Not fdatasync: that may leave the mode behind, by which a whole instance is known.
                os.fsync(self._descriptor)
                if self._name_needs_sync:
                    os.fsync(self._folder)
        except (OSError, InstanceRefusedError) as error:
            raise self._failed(error) from error
        self._close()

    def discard(self) -> None:
        """Leave nothing of the instance. May be called again."""
        if self._descriptor >= 0:
            self._close()
            # A name that stays is that of a half instance, which nobody reads.
            with suppress(OSError):
                os.unlink(self._name, dir_fd=self._folder)

    def _mark_whole(self) -> None:
        if self._is_synced and not self._name_needs_sync:
            # A sync of another file may bring the mode to the disk before this one's own does.
            durable_files.wait_until_written(self._descriptor)
        os.fchmod(self._descriptor, durable_files.SHARED_FILE)

    def _failed(self, error: OSError | InstanceRefusedError) -> InstanceRefusedError | SpoolFullError:
        self.discard()
        return _full(error) if isinstance(error, OSError) else error

    def _close(self) -> None:
        descriptor, self._descriptor = self._descriptor, -1
        os.close(descriptor)

    def _has_its_uid(self) -> bool:
        """Tell whether SOP Instance UID stands where it belongs, as the command has it. False if in doubt."""
        value = self._sop_instance_uid.encode("ascii")
        value += b"\0" * (len(value) & 1)
        length = len(value)
        if self._transfer_syntax_uid == ImplicitVRLittleEndian:
            element = b"\x08\0\x18\0" + length.to_bytes(4, "little")
        elif self._transfer_syntax_uid == ExplicitVRBigEndian:
            element = b"\0\x08\0\x18UI" + length.to_bytes(2, "big")
        else:
            element = b"\x08\0\x18\0UI" + length.to_bytes(2, "little")
        return self._first.find(element + value, 0, _UID_STANDS_WITHIN_BYTES) >= 0

    def _check_all(self) -> None:
        if self._is_synced or self._study_instance_uid is not None or not self._has_its_uid():
            self._check()
        if self._must_not_differ:
            self._check_against_the_first()

    def _check(self) -> None:
        if not self.size_bytes:
            raise InstanceRefusedError("the data set cannot be read: it is empty", status=0xC000)
        deflated = self._transfer_syntax_uid == DeflatedExplicitVRLittleEndian
        try:
            with _ONE_INFLATED_AT_A_TIME if deflated else nullcontext():
                header = self._header()
        except UnreadableError as error:
            raise InstanceRefusedError(f"the data set cannot be read: {error}", status=0xC000) from None
        if header.text(_SOP_INSTANCE_UID) != self._sop_instance_uid:
            reason = "the data set has no SOP Instance UID, or another one than the command"
            raise InstanceRefusedError(reason, status=0xA900)
        if self._study_instance_uid not in (None, header.text(_STUDY_INSTANCE_UID)):
            raise InstanceRefusedError("the data set is of another study than the request", status=0xA900)

    def _header(self) -> Header:
        if self.size_bytes == len(self._first):
            return read_header(self._first, transfer_syntax_uid=self._transfer_syntax_uid)
        return read_open_file_header(self._descriptor)

    def _check_against_the_first(self) -> None:
        first = os.open(f"{self._sop_instance_uid}.dcm", os.O_RDONLY | os.O_CLOEXEC, dir_fd=self._folder)
        with os.fdopen(first, "rb") as file, os.fdopen(os.dup(self._descriptor), "rb") as own:
            own.seek(0)
            is_the_same = have_same_content(file, own)
        if not is_the_same:
            reason = "another instance of this association has its UID, and ON_CONFLICT is reject"
            raise InstanceRefusedError(reason, status=_DUPLICATE_SOP_INSTANCE)


def have_same_content(one: BinaryIO, other: BinaryIO) -> bool:
    """Tell whether two files hold the same from where they stand, without having either in memory."""
    while True:
        block = one.read(_COMPARED_BYTES)
        if block != other.read(_COMPARED_BYTES):
            return False
        if not block:
            return True


def free_name(incoming: Path, uid: str) -> str:
    """Return a name for an instance that stands for none yet in a folder that nobody else writes to."""
    names = itertools.chain((f"{uid}.dcm",), (f"{uid}_{copy}.dcm" for copy in itertools.count(2)))
    return next(name for name in names if not (incoming / name).exists())


def _names(uid: str) -> Iterator[str]:
    """Yield the names of what comes under a UID, one after the other."""
    yield f"{uid}.dcm"
    for copy in range(2, _MOST_OF_ONE_UID):
        yield f"{uid}_{copy}.dcm"
    raise OSError(errno.EEXIST, f"one UID came {_MOST_OF_ONE_UID} times")


def _new_file(folder: int, uid: str) -> tuple[str, int]:
    """Make a file that a UID names, beside what came under the same UID before; return its name and descriptor."""
    for name in _names(uid):
        try:
            return name, os.open(name, _HALF, durable_files.PRIVATE_FILE, dir_fd=folder)
        except FileExistsError:
            continue
    raise AssertionError("unreachable: the names end in an error")


def _write_all(descriptor: int, rest: memoryview) -> None:
    while rest:
        rest = rest[os.write(descriptor, rest) :]


def _full(error: OSError) -> SpoolFullError:
    return SpoolFullError(f"the spool cannot take an instance: {error.strerror or 'write error'}")
