"""The use case of the gateway: keep a study, decide what runs on it, have it run. Nothing here knows DICOM's network.

    ended ─▶ collect ─▶ commit (one rename) ─▶ ledger: received ─▶ match ─▶ ledger: decision + runs ─▶ outbox ─▶ Prefect

Each arrow may be the last thing a process does; ``start`` carries on from whichever it was.
"""

from __future__ import annotations

import logging
import sqlite3
import threading
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import partial
from typing import Final, Literal

from dicom_gateway import durable_files, explain
from dicom_gateway.grouping import Patients, share_patient
from dicom_gateway.instance_filling import uids_of_files
from dicom_gateway.interfaces import Definitions
from dicom_gateway.ledger import Decision, Ledger
from dicom_gateway.open_groups import DueGroup, OpenGroups
from dicom_gateway.outbox import Outbox
from dicom_gateway.spool import Spool, SpooledStudy, tidy, write_record
from dicom_gateway.stored_headers import headers_below, sop_instance_uid
from dicom_gateway.uid_key import UidKey
from flows_engine.definition.schema import FlowDefinition
from flows_engine.handoff.header import Header
from flows_engine.handoff.matching import MatchReport
from flows_engine.handoff.run_request import RunRequest
from flows_engine.handoff.study_match import match_study
from flows_engine.handoff.study_store import INPUT_NAME, StudyNotFoundError, StudyOutcome, StudyRecord, StudyStore

_log = logging.getLogger(__name__)

LateArrival = Literal["rerun", "ignore", "new"]
"""What becomes of instances of a study that was closed: a new version of it, nothing, or a study of their own."""

_LOOK_AGAIN_SECONDS: Final = 1.0
"""How soon a study that another process released is noticed."""


class Intake:
    """Takes ended receptions to created runs. Safe to use from several threads.

    ``late_arrival`` says what becomes of what comes of a study that was closed; None where every association is a study
    of its own. With ``hold_incomplete``, a study whose association ended other than by a release waits for a person.
    """

    def __init__(
        self,
        *,
        spool: Spool,
        store: StudyStore,
        ledger: Ledger,
        outbox: Outbox,
        definitions: Definitions,
        uid_key: UidKey,
        hold_incomplete: bool,
        groups: OpenGroups,
        late_arrival: LateArrival | None = None,
    ) -> None:
        self._spool = spool
        self._store = store
        self._ledger = ledger
        self._outbox = outbox
        self._definitions = definitions
        self._uid_key = uid_key
        self._hold_incomplete = hold_incomplete
        self._groups = groups
        self._late_arrival = late_arrival
        self._open: set[str] = set()
        self._ended: deque[tuple[str, bool]] = deque()
        self._backlog: list[SpooledStudy] = []
        self._committing = threading.Lock()
        self._wake = threading.Event()
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="intake", daemon=True)

    def start(self) -> None:
        """Carry on where an earlier gateway stopped, then decide on studies as they come.

        Everything acknowledged is in the store and the ledger when this returns. May be cut short and done again.
        """
        self._recover()
        self._outbox.start()
        self._wake.set()
        self._thread.start()

    def stop(self) -> None:
        """Finish the decision at hand, move to the store what has ended, and stop."""
        self._stopping.set()
        self._wake.set()
        if self._thread.ident is not None:
            self._thread.join()
            self.commit_ended()
        self._outbox.stop()

    def opened(self, reception_id: str) -> None:
        """Take note that a reception has begun: no group that it feeds is closed before it ends."""
        self._open.add(reception_id)

    def finish(self, reception_id: str, *, complete: bool) -> None:
        """Take note that a reception has ended: its studies move to the store. What the disk refuses is tried again."""
        self._ended.append((reception_id, complete))
        self._wake.set()

    def commit_ended(self) -> None:
        """Move the studies of ended receptions to the store, as far as they are complete and the disk allows."""
        with self._committing:
            for _ in range(len(self._ended)):
                reception_id, complete = self._ended.popleft()
                # Where its process died after it had noted the release, and before it could tell.
                complete = complete or self._spool.is_released(reception_id)
                if not self._done(reception_id, partial(self._groups.take, reception_id, is_complete=complete)):
                    self._ended.append((reception_id, complete))
                self._open.discard(reception_id)
            for due in self._groups.due(open_receptions=frozenset(self._open)):
                self._done(due.group_id, partial(self._close, due))
            self._commit_backlog()

    def _done(self, reception_id: str, step: Callable[[], None]) -> bool:
        try:
            step()
        except Exception as error:  # noqa: BLE001  # a full disk must not lose the others; this one is tried again
            _log.error(
                "what was received could not be collected (%s); trying again",
                _in_a_word(error),
                extra={"action": "collect", "reception": reception_id},
            )
            return False
        return True

    def _close(self, group: DueGroup) -> None:
        earlier = self._groups.earlier_studies(group.group_id)
        if earlier is None and self._late_arrival not in (None, "new"):
            earlier = self._earlier_studies(group)
            # Before anything is linked: who does this again has to know of it.
            self._groups.note_earlier_studies(group.group_id, earlier)
        if earlier and self._late_arrival == "rerun" and not self._spool.is_closing(group.group_id):
            for study_id in earlier:
                self._spool.link(self._store.input_folder(study_id).rglob("*.dcm"), group.group_id)
        studies = self._spool.collect(group.group_id, complete=group.is_complete)
        # All or none: who does this again gets them all again.
        self._backlog.extend([self._told_of_earlier(study, earlier or ()) for study in studies])
        self._groups.closed(group.group_id)

    def _told_of_earlier(self, study: SpooledStudy, earlier: Sequence[str]) -> SpooledStudy:
        record = study.record
        has_earlier = self._late_arrival == "ignore" or record.new_instance_count != record.instance_count
        if not earlier or not has_earlier or record.earlier_study_id:
            return study
        of_patient = (
            study_id
            for study_id in earlier
            if share_patient(self._stored_headers(study_id), headers_below(study.folder / INPUT_NAME))
        )
        earlier_study_id = next(of_patient, None)
        if earlier_study_id is None:
            return study
        known = self._ledger.study(earlier_study_id)
        changes: dict[str, object] = {"earlier_study_id": earlier_study_id}
        if known is not None and known.outcome == "held":
            # Nothing has run on that one, so all of this is new, also what came a second time.
            changes["new_instance_count"] = None
        return replace(study, record=record.model_copy(update=changes))

    def _earlier_studies(self, group: DueGroup) -> tuple[str, ...]:
        """Return the newest version of each study that more has come of, and that is still in the store.

        One StudyInstanceUID may have been given to two patients: only what is of a patient of the group is meant.
        """
        if self._spool.is_closing(group.group_id):
            return ()
        patients, newest = Patients(), dict[str, set[int]]()
        for uid in sorted(self._groups.study_uids(group.group_id)):
            seen: set[int] = set()
            for study_id in self._ledger.studies_of(self._uid_key.hash_of(uid)):
                headers = self._stored_headers(study_id)
                one = next(headers, None)
                if one is None or patients.number(one[1], sop_instance_uid=one[0]) in seen:
                    continue
                numbers = {patients.number(header, sop_instance_uid=uid) for uid, header in (one, *headers)}
                seen |= numbers
                newest[study_id] = numbers
        if not newest:
            return ()
        came = {
            patients.number(header, sop_instance_uid=sop_instance_uid(name))
            for name, header in self._spool.headers(group.group_id)
        }
        return tuple(study_id for study_id, numbers in newest.items() if numbers & came)

    def _stored_headers(self, study_id: str) -> Iterator[tuple[str, Header]]:
        """Yield the SOP Instance UID and the header of each instance of a study; nothing where it is not there."""
        with suppress(StudyNotFoundError):
            yield from headers_below(self._store.input_folder(study_id))

    def _recover(self) -> None:
        self._groups.restore()
        self.commit_ended()
        for study_id in self._store.study_ids():
            if not self._ledger.has(study_id):
                self._enter_again(study_id)

    def _enter_again(self, study_id: str) -> None:
        """Enter a study that is in the store only. It goes on by itself only if it was announced: one that was not may
        have run before, under a ledger that is lost.
        """
        extra = {"action": "recover", "study_id": study_id}
        if not self._ledger.is_announced(study_id):
            reason = f"the ledger did not know it, so it may have run before; `dicomflow release {study_id}` runs it"
            self._ledger.announce(study_id, held_because=reason)
        try:
            record = self._store.record(study_id)
            self._ledger.add(record, uid_hashes=self._uid_key.hashes_of(record))
        except (StudyNotFoundError, OSError) as error:
            reason = str(error) if isinstance(error, StudyNotFoundError) else _unforeseen(study_id, error)
            self._ledger.add_unreadable(study_id, reason=reason)
            _log.error("the record of a study is damaged; its instances are where they were", extra=extra)
        else:
            _log.warning("a study that the ledger did not know was entered", extra=extra)

    def _commit_backlog(self) -> None:
        waiting, self._backlog = self._backlog, []
        for study in waiting:
            extra = {"action": "commit", "study_id": study.record.study_id}
            try:
                self._commit(study)
            except Exception as error:  # noqa: BLE001  # a full disk must not lose the others; this one is tried again
                self._backlog.append(study)
                _log.error("a study could not be moved to the store (%s); trying again", _in_a_word(error), extra=extra)
            else:
                _log.info("a study was received; instances: %d", study.record.instance_count, extra=extra)
                if study.record.conflict_count:
                    count = study.record.conflict_count
                    _log.warning(
                        "instances that share the UID of another one and differ from it: %d", count, extra=extra
                    )

    def _commit(self, study: SpooledStudy) -> None:
        target = self._store.folder(study.record.study_id)
        if study.folder.is_dir():
            # Before there is a record: a restart finds the reason with whatever it finds of the study.
            self._ledger.announce(study.record.study_id, held_because=study.problem)
            write_record(study)
            study.folder.rename(target)
            durable_files.sync_folder(study.folder.parent)
        # Also where it was moved before, and this is what failed.
        durable_files.sync_folder(self._store.root)
        self._ledger.add(study.record, uid_hashes=self._uid_key.hashes_of(study.record))
        if study.record.earlier_study_id and self._late_arrival == "rerun":
            self._ledger.supersede(study.record.earlier_study_id, by=study.record.study_id)
        uids = uids_of_files(self._store.input_folder(study.record.study_id))
        self._ledger.enter_instances(study.record.study_id, self._uid_key.instance_hashes(uids))
        tidy(study.folder.parent)

    def _run(self) -> None:
        while not self._stopping.is_set():
            self._wake.wait(timeout=_LOOK_AGAIN_SECONDS)
            self._wake.clear()
            try:
                self.commit_ended()
                for study_id, released in self._ledger.undecided():
                    self._decide(study_id, released=released)
            except Exception as error:  # noqa: BLE001  # outer edge of the thread: what is undecided is taken up again
                _log.error(
                    "studies could not be decided on (%s); trying again",
                    _in_a_word(error),
                    extra={"action": "match"},
                )
                self._stopping.wait(_LOOK_AGAIN_SECONDS)

    def _decide(self, study_id: str, *, released: bool) -> None:
        try:
            self._enter_decision(study_id, self._decision(study_id, released=released))
        except sqlite3.OperationalError:
            # The ledger cannot be written, as on a full disk. That is not the study's fault: it is taken up again.
            raise
        except Exception as error:  # noqa: BLE001  # whatever is wrong with one study, the others go on
            self._enter_decision(study_id, Decision(outcome="held", reason=_unforeseen(study_id, error)))

    def _decision(self, study_id: str, *, released: bool) -> Decision:
        try:
            return decide(
                self._store.record(study_id),
                study_uri=self._store.input_folder(study_id).parent.absolute().as_uri(),
                definitions=self._definitions.snapshot(),
                store=self._store,
                hold=self._hold_incomplete and not released,
                runs_late=released or self._late_arrival != "ignore",
            )
        except StudyNotFoundError as error:
            return Decision(outcome="held", reason=str(error))

    def _enter_decision(self, study_id: str, decision: Decision) -> None:
        self._ledger.decide(study_id, decision)
        self._outbox.wake()
        _log.info(
            "the study is %s: %s",
            decision.outcome,
            decision.reason,
            extra={"action": "match", "study_id": study_id},
        )


def decide(
    record: StudyRecord,
    *,
    study_uri: str,
    definitions: Mapping[str, FlowDefinition],
    store: StudyStore,
    hold: bool,
    runs_late: bool = True,
) -> Decision:
    """Return what is to become of a study.

    ``hold`` says that an incomplete one waits for a person, ``runs_late`` that flows run on what came late. Pure, but
    for the files of the study, which are read where a definition asks for what only they tell.
    """
    if record.earlier_study_id and not runs_late:
        reason = (
            f"it came after study {record.earlier_study_id} was closed, and LATE_ARRIVAL is ignore; "
            f"`dicomflow release {record.study_id}` runs it"
        )
        return Decision(outcome="no-match", reason=reason)
    if record.earlier_study_id and record.new_instance_count == 0:
        reason = (
            f"all of it had come before, as study {record.earlier_study_id}; "
            f"`dicomflow reprocess {record.earlier_study_id}` runs that again"
        )
        return Decision(outcome="no-match", reason=reason)
    if hold and not record.complete:
        reason = (
            f"the association was not released: it ended after {record.instance_count} instances, and more may "
            f"be missing; `dicomflow release {record.study_id}` runs the study as it is"
        )
        return Decision(outcome="held", reason=reason)
    if not definitions:
        reason = f"no flow definition is in force; `dicomflow release {record.study_id}` decides again"
        return Decision(outcome="held", reason=reason)
    report = match_study(record, definitions.values(), store=store)
    return Decision(
        outcome=_outcome(report),
        reason=explain.summary(report),
        explanation=explain.explain(report),
        requests=tuple(
            _request(record, definition, study_uri=study_uri)
            for definition in definitions.values()
            if definition.name in report.matched
        ),
    )


def idempotency_key(study_id: str, definition: FlowDefinition) -> str:
    """Return the name under which a run of this very definition on this study is created once."""
    return f"{study_id}:{definition.name}:{definition.digest[:16]}"


def _in_a_word(error: Exception) -> str:
    """Return what a log may say of an error: its text might name a patient's folder."""
    return (isinstance(error, OSError) and error.strerror) or type(error).__name__


def _unforeseen(study_id: str, error: Exception) -> str:
    return f"no decision was reached ({type(error).__name__}); `dicomflow release {study_id}` decides again"


def _outcome(report: MatchReport) -> StudyOutcome:
    if report.undecided:
        return "held"
    return "triggered" if report.matched else "no-match"


def _request(record: StudyRecord, definition: FlowDefinition, *, study_uri: str) -> tuple[RunRequest, str]:
    request = RunRequest(
        study_id=record.study_id,
        study_uri=study_uri,
        sender=record.sender,
        received_at=record.received_at,
        reason="late-arrival" if record.earlier_study_id else "received",
        definition=definition,
    )
    return request, idempotency_key(record.study_id, definition)
