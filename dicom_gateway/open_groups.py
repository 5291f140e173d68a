"""Groups that more may come into: what several associations send of one study, or of one patient (``GROUP_BY``).

A group is a folder of the spool, shaped like a reception, with one file more::

    <group>/group.json     what belongs into it, and when the last of it came

Ended receptions are dealt out to groups by renames, which may be cut short and done again. Where each association is a
study of its own, a group is what an aborted one has left: it waits there for its sender to come again.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Collection
from dataclasses import dataclass
from datetime import datetime
from typing import Final, Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from dicom_gateway import durable_files
from dicom_gateway.completeness import GroupState, Waiting, closes_at
from dicom_gateway.grouping import STUDY_INSTANCE_UID, group_key
from dicom_gateway.spool import Spool
from flows_engine.handoff.header import Header

_log = logging.getLogger(__name__)

GROUP_NAME: Final = "group.json"
_LOOK_AGAIN_SECONDS: Final = 5.0

GroupBy = Literal["association", "study", "patient"]
Key = tuple[str, ...]


class GroupNote(BaseModel):
    """What ``group.json`` says. It may name a study or a patient, and never leaves the spool."""

    model_config = ConfigDict(frozen=True, hide_input_in_errors=True)

    keys: frozenset[Key]
    last_data_at: float
    is_complete: bool
    earlier_studies: tuple[str, ...] | None = None
    """The studies that this is more of; None where nobody has looked yet."""


@dataclass(frozen=True, kw_only=True)
class DueGroup:
    """A group that nothing more is waited for."""

    group_id: str
    is_complete: bool


@dataclass(frozen=True, kw_only=True)
class WaitingGroup:
    """What a person may know of a group, or of a reception that has not ended."""

    received_at: datetime
    sender: str
    instance_count: int
    waits_for: str


def waiting_groups(spool: Spool) -> list[WaitingGroup]:
    """Return what is not a study yet, oldest first. May be asked for while a gateway uses the spool."""
    waiting = []
    for folder_id in spool.ids():
        origin = spool.origin(folder_id)
        if origin is None:
            continue
        note = _read(spool, folder_id)
        if note is None:
            waits_for = "the end of its association"
        elif note.is_complete:
            waits_for = "more of it, for STUDY_IDLE_SECONDS"
        else:
            waits_for = "its sender to come again, for INCOMPLETE_SECONDS"
        waiting.append(
            WaitingGroup(
                received_at=origin.received_at,
                sender=f"{origin.sender.ae_title}@{origin.sender.host}",
                instance_count=sum(1 for _ in spool.names(folder_id)),
                waits_for=waits_for,
            )
        )
    return waiting


def _read(spool: Spool, group_id: str) -> GroupNote | None:
    try:
        return GroupNote.model_validate_json((spool.root / group_id / GROUP_NAME).read_bytes())
    except (FileNotFoundError, NotADirectoryError, ValidationError):
        return None


class OpenGroups:
    """The groups of one spool. Not safe to use from several threads. ``clock`` gives seconds since 1970."""

    def __init__(
        self, spool: Spool, *, group_by: GroupBy, waiting: Waiting, clock: Callable[[], float] = time.time
    ) -> None:
        self._spool = spool
        self._group_by = group_by
        self._waiting = waiting
        self._clock = clock
        self._groups: dict[str, GroupNote] = {}
        self._keys_of_open: dict[str, dict[str, Key]] = {}
        self.asks_again_at: float | None = None
        """When ``due`` has to be called again, even if nothing happens; known after it was called."""

    def restore(self) -> None:
        """Carry on with what an earlier gateway left: its groups, and receptions that ended with it.

        Only for a spool that nobody else uses.
        """
        ended = []
        for folder_id in self._spool.ids():
            note = _read(self._spool, folder_id)
            if note is not None:
                self._groups[folder_id] = self._with_keys_anew(folder_id, note)
            elif self._spool.is_closing(folder_id):
                self._groups[folder_id] = self._note(frozenset(), is_complete=self._spool.is_released(folder_id))
            else:
                ended.append(folder_id)
        # Only now: what was being dealt out may have its group already.
        for folder_id in ended:
            self.take(folder_id, is_complete=self._spool.is_released(folder_id))

    def _with_keys_anew(self, group_id: str, note: GroupNote) -> GroupNote:
        """Return a note with the keys as they are made now, too: GROUP_BY may have changed, or this program."""
        if not note.keys or self._spool.is_closing(group_id):
            return note
        try:
            return note.model_copy(update={"keys": note.keys.union(self._keys(group_id).values())})
        except OSError:  # it is closed in its time all the same
            return note

    def take(self, reception_id: str, *, is_complete: bool) -> None:
        """Deal out what an ended reception holds. Raises ``OSError`` where the disk refuses; then it may be called
        again.
        """
        self._keys_of_open.pop(reception_id, None)
        if self._group_by == "association":
            self._take_association(reception_id, is_complete=is_complete)
            return
        keys = self._keys(reception_id)
        if not keys:
            self._spool.remove(reception_id)
            return
        groups = {key: self._group_with(key) for key in set(keys.values())}
        if list(groups.values()) == [None]:
            # Nothing has to be moved: the reception becomes the group.
            self._write(reception_id, self._note(frozenset(groups), is_complete=is_complete))
            return
        for key, known in groups.items():
            group_id = known or self._spool.open_beside(reception_id)
            # Before anything moves there: a restart finds a group, and deals out the rest.
            self._write(group_id, self._note(frozenset({key}), is_complete=is_complete))
            self._spool.move([name for name, one in keys.items() if one == key], reception_id, group_id)
        self._spool.remove(reception_id)

    def due(self, *, open_receptions: Collection[str]) -> list[DueGroup]:
        """Return the groups that are to be closed now, given the receptions that are still open."""
        now = self._clock()
        due, next_moments = [], []
        for group_id in list(self._groups):
            note = self._groups[group_id]
            if self._spool.is_closing(group_id):
                due.append(DueGroup(group_id=group_id, is_complete=note.is_complete))
                continue
            if note.last_data_at > now:
                # The clock was set back: from here on, a whole wait is enough.
                self._groups[group_id] = note.model_copy(update={"last_data_at": now})
            try:
                moment = self._closes_at(self._groups[group_id], open_receptions, now=now)
            except OSError as error:
                _log.error(
                    "it cannot be seen whether a group is complete: %s; looking again",
                    error.strerror or type(error).__name__,
                    extra={"action": "collect", "reception": group_id},
                )
                moment = now + _LOOK_AGAIN_SECONDS
            if moment <= now:
                due.append(DueGroup(group_id=group_id, is_complete=note.is_complete))
            else:
                next_moments.append(moment)
        self.asks_again_at = min(next_moments, default=None)
        return due

    def study_uids(self, group_id: str) -> frozenset[str]:
        """Return the StudyInstanceUIDs of what a group holds."""
        keys = self._groups[group_id].keys
        if keys and all(key[0] == "study" for key in keys):
            return frozenset(key[1] for key in keys)
        return frozenset(header.text(STUDY_INSTANCE_UID) for _, header in self._spool.headers(group_id)) - {""}

    def earlier_studies(self, group_id: str) -> tuple[str, ...] | None:
        """Return what was noted of the studies that a group is more of; None where nothing was."""
        return self._groups[group_id].earlier_studies

    def note_earlier_studies(self, group_id: str, earlier: tuple[str, ...]) -> None:
        """Note, durably, the studies that a group is more of. Raises ``OSError``."""
        self._write(group_id, self._groups[group_id].model_copy(update={"earlier_studies": earlier}))

    def closed(self, group_id: str) -> None:
        """Take note that a group is closed, and its studies are the spool's to keep."""
        self._groups.pop(group_id, None)

    def _take_association(self, reception_id: str, *, is_complete: bool) -> None:
        waits = not is_complete and self._waiting.incomplete_seconds > 0
        keys = frozenset(self._keys(reception_id).values()) if waits or self._groups else frozenset()
        met = [one for one, note in self._groups.items() if note.keys & keys]
        # What is being laid out as studies lies no longer where it came: it is left to become them.
        for group_id in [one for one in met if not self._spool.is_closing(one)]:
            _log.info(
                "what an aborted association had sent is joined with what its sender sent now",
                extra={"action": "join", "reception": group_id},
            )
            self._join(group_id, keys, reception_id)
        # What does not wait has no keys: it waits for no other association either.
        note = self._note(keys if waits else frozenset(), is_complete=is_complete)
        if waits:
            self._write(reception_id, note)
        else:
            self._groups[reception_id] = note

    def _join(self, group_id: str, keys: frozenset[Key], reception_id: str) -> None:
        """Move what a group has of the patients that a reception is of. What it has of others goes on waiting."""
        note = self._groups[group_id]
        patients = {_patient(key) for key in note.keys & keys}
        names = [name for name, key in self._keys(group_id).items() if _patient(key) in patients]
        self._spool.move(names, group_id, reception_id)
        rest = frozenset(key for key in note.keys if _patient(key) not in patients)
        if rest:
            self._write(group_id, note.model_copy(update={"keys": rest}))
        else:
            self._spool.remove(group_id)
            self._groups.pop(group_id)

    def _closes_at(self, note: GroupNote, open_receptions: Collection[str], *, now: float) -> float:
        waiting = self._waiting
        if self._group_by == "association":
            waiting = Waiting(idle_seconds=0.0, incomplete_seconds=self._waiting.incomplete_seconds)
        state = GroupState(last_data_at=note.last_data_at, is_complete=note.is_complete, is_fed=False)
        moment = closes_at(state, waiting, now=now)
        if moment <= now and note.keys and any(self._feeds(reception, note) for reception in open_receptions):
            state = GroupState(last_data_at=note.last_data_at, is_complete=note.is_complete, is_fed=True)
            return closes_at(state, waiting, now=now)
        return moment

    def _feeds(self, reception_id: str, note: GroupNote) -> bool:
        """Tell whether an open reception holds anything of a group; what was looked at before is remembered."""
        known = self._keys_of_open.setdefault(reception_id, {})
        known.update(self._keys(reception_id, but=known))
        return not note.keys.isdisjoint(known.values())

    def _keys(self, reception_id: str, *, but: Collection[str] = ()) -> dict[str, Key]:
        """Return what each instance of a reception belongs to, by the name of its file."""
        # Not asked for of a reception in which nothing is: the disk may have been too full for that, too.
        is_needed = self._group_by == "association" and any(self._spool.names(reception_id, but=but))
        sender = self._spool.sender(reception_id) if is_needed else ""
        return {
            name: self._key(header, uid=name.partition("_")[0].removesuffix(".dcm"), sender=sender)
            for name, header in self._spool.headers(reception_id, but=but)
        }

    def _key(self, header: Header, *, uid: str, sender: str) -> Key:
        study, patient = header.text(STUDY_INSTANCE_UID), group_key(header, sop_instance_uid=uid)
        # With the patient: what comes of one says nothing of another's, whom somebody gave the same StudyInstanceUID.
        if self._group_by == "association":
            return ("sender", sender, study or uid, *patient)
        if self._group_by == "study" and study:
            return ("study", study, *patient)
        return patient

    def _group_with(self, key: Key) -> str | None:
        found = (
            group_id
            for group_id, note in self._groups.items()
            if key in note.keys and not self._spool.is_closing(group_id)
        )
        return next(found, None)

    def _note(self, keys: frozenset[Key], *, is_complete: bool) -> GroupNote:
        return GroupNote(keys=keys, last_data_at=self._clock(), is_complete=is_complete)

    def _write(self, group_id: str, note: GroupNote) -> None:
        path = self._spool.root / group_id / GROUP_NAME
        durable_files.write_file(
            path,
            note.model_dump_json().encode(),
            temporary=path.with_suffix(".part"),
            mode=durable_files.PRIVATE_FILE,
        )
        self._groups[group_id] = note


def _patient(key: Key) -> Key:
    """Return whose it is, of a key that names a sender."""
    return key[3:]
