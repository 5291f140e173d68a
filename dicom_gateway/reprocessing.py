"""The use case: carry out one request to process studies again. Knows no Prefect itself.

Studies are taken one after the other, so that ten thousand cost no more memory than one, and a request that is cut off
begins anew without making a run a second time: what it made is found again in Prefect.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Final, TypeVar

from dicom_gateway import explain
from dicom_gateway.backing_off import wait_seconds
from dicom_gateway.errors import TriggerRefusedError, TriggerUnavailableError
from dicom_gateway.interfaces import RunHistory, RunTrigger
from dicom_gateway.ledger import Ledger, LedgerStudy, ReprocessedRun
from dicom_gateway.reprocess_decision import LeftToGateway, MakeRun, candidates, choose, next_step, queue
from dicom_gateway.reprocess_request import ReprocessRequest
from dicom_gateway.reprocess_result import ReprocessResult, Row, What
from dicom_gateway.study_lookup import find_studies
from dicom_gateway.uid_key import UidKey
from flows_engine.definition import naming
from flows_engine.definition.schema import FlowDefinition
from flows_engine.handoff.matching import FlowFinding
from flows_engine.handoff.run_request import RunRequest
from flows_engine.handoff.study_match import match_study
from flows_engine.handoff.study_store import StudyNotFoundError, StudyRecord, StudyStore

Logger = logging.Logger | logging.LoggerAdapter[logging.Logger]
Answer = TypeVar("Answer")

MOST_WAITING: Final = 200
"""How many runs of one request in bulk wait at once: a long queue makes every poll of every worker slow."""
_LOOK_AGAIN_SECONDS: Final = 1.0
_MOST_ATTEMPTS: Final = 12
_TELL_SECONDS: Final = 10.0


class Reprocessing:
    """One request, named by ``request_id``. To carry it out again makes no run a second time.

    ``pause`` waits for so many seconds; what it raises ends the request.
    """

    def __init__(
        self,
        request: ReprocessRequest,
        *,
        request_id: str,
        definitions: Mapping[str, FlowDefinition],
        store: StudyStore,
        ledger: Ledger,
        uid_key: UidKey | None,
        history: RunHistory,
        trigger: RunTrigger,
        logger: Logger,
        pause: Callable[[float], object] = time.sleep,
        most_waiting: int = MOST_WAITING,
    ) -> None:
        self._request = request
        self._request_id = request_id
        self._definitions = definitions
        self._store = store
        self._ledger = ledger
        self._uid_key = uid_key
        self._history = history
        self._trigger = trigger
        self._logger = logger
        self._pause = pause
        self._most_waiting = most_waiting
        self._room = 0
        self._result = ReprocessResult(in_bulk=request.in_bulk, dry_run=request.dry_run)

    def carry_out(self) -> ReprocessResult:
        """Make the runs that the request asks for, and return what came of it. To be called once.

        Raises ``RequestError`` where the request names what is not there, and ``TriggerUnavailableError`` where Prefect
        has not answered for minutes, or has no deployment of a flow.
        """
        wanted = candidates(self._definitions, self._request.flow)
        for study_id in self._studies():
            self._result.studies += 1
            try:
                self._process(study_id, wanted)
            except StudyNotFoundError as error:
                self._not_processed(study_id, str(error))
            except TriggerUnavailableError:
                raise
            except Exception as error:  # noqa: BLE001  # whatever is wrong with one study, the others go on
                self._not_processed(study_id, f"study {study_id} cannot be processed ({type(error).__name__})")
        return self._result

    def await_begun(self) -> None:
        """Return once none of the request's runs waits any more: for so long it can be stopped, and they with it."""
        told = False
        while waiting := self._patiently(lambda: self._history.waiting(self._request_id)):
            if not told:
                self._logger.info("every run is made; %d wait, and are withdrawn if this request is cancelled", waiting)
                told = True
            self._pause(_LOOK_AGAIN_SECONDS)

    def _studies(self) -> Iterator[str]:
        if self._request.in_bulk:
            yield from self._span()
            return
        found = find_studies(self._request.study, ledger=self._ledger, uid_key=self._uid_key)
        if self._request.receptions == "newest":
            self._result.only_newest_of(found[1:])
            found = found[:1]
        yield from found

    def _span(self) -> Iterator[str]:
        since, until = self._request.since, self._request.until
        number = self._ledger.count_received(since=since, until=until)
        self._logger.info("studies of this span of time: %d", number)
        tell_at = time.monotonic() + _TELL_SECONDS
        for study in self._ledger.received(since=since, until=until):
            if study.outcome == "held":
                self._result.held += 1
            elif study.outcome == "received":
                self._result.not_decided += 1
            else:
                yield study.study_id
            if time.monotonic() > tell_at:
                tell_at = time.monotonic() + _TELL_SECONDS
                self._logger.info(
                    "looked at %d of %d studies; runs made: %d", self._result.studies, number, self._result.made
                )

    def _process(self, study_id: str, wanted: tuple[FlowDefinition, ...]) -> None:
        study = self._ledger.study(study_id)
        if study is not None and (reason := _why_not(study)):
            self._not_processed(study_id, reason)
            return
        record = self._store.record(study_id)
        study_uri = self._store.input_folder(study_id).parent.absolute().as_uri()
        choice = choose(lambda asked: match_study(record, asked, store=self._store), wanted, self._request)
        for finding in choice.others:
            self._tell_of_other(record, finding)
        if not choice.run:
            self._result.without_match()
        elif self._request.dry_run:
            for definition in choice.run:
                self._result.add(Row(study_id=study_id, flow=definition.name, what="would run"))
        else:
            self._have_run(record, choice.run, study=study, study_uri=study_uri)

    def _tell_of_other(self, record: StudyRecord, finding: FlowFinding) -> None:
        what: What = "undecided" if finding.verdict == "undecided" else "does not match"
        # In bulk, most flows do not match most studies: who asks to see that, asks for a dry run.
        if what == "undecided" or self._request.dry_run or not self._request.in_bulk:
            reason = explain.first_reason(finding, record.instance_count)
            self._result.add(Row(study_id=record.study_id, flow=finding.flow, what=what, reason=reason))

    def _have_run(
        self, record: StudyRecord, definitions: tuple[FlowDefinition, ...], *, study: LedgerStudy | None, study_uri: str
    ) -> None:
        study_id = record.study_id
        pending = {run.idempotency_key for run in study.runs if run.state == "pending"} if study else set()
        flows = [definition.name for definition in definitions]
        runs = self._patiently(lambda: self._history.runs_of(study_id, flows=flows))
        for definition in definitions:
            step = next_step(study_id, definition, request_id=self._request_id, runs=runs, pending_keys=pending)
            if isinstance(step, MakeRun):
                run_request = RunRequest(
                    study_id=study_id,
                    study_uri=study_uri,
                    sender=record.sender,
                    received_at=record.received_at,
                    reason="reprocess",
                    note=self._request.note,
                    definition=definition,
                )
                self._make(run_request, idempotency_key=step.idempotency_key)
            elif isinstance(step, LeftToGateway):
                reason = "the gateway is about to make its run"
                self._result.add(Row(study_id=study_id, flow=definition.name, what="under way", reason=reason))
            elif step.by_this_request:
                self._made(study_id, definition.name, step.run.run_id)
            else:
                row = Row(
                    study_id=study_id,
                    flow=definition.name,
                    what="under way",
                    run_id=step.run.run_id,
                    reason=f"which is {step.run.state}",
                )
                self._result.add(row)

    def _make(self, request: RunRequest, *, idempotency_key: str) -> None:
        if self._request.in_bulk:
            self._await_room()
        tags = [naming.reason_tag("reprocess"), naming.request_tag(self._request_id)]
        try:
            run_id = self._patiently(
                lambda: self._trigger.trigger(
                    request, idempotency_key=idempotency_key, queue=queue(self._request), tags=tags
                )
            )
        except TriggerRefusedError as error:
            flow = request.definition.name
            self._result.add(Row(study_id=request.study_id, flow=flow, what="refused", reason=str(error)))
        else:
            self._made(request.study_id, request.definition.name, run_id)

    def _made(self, study_id: str, flow: str, run_id: str) -> None:
        self._result.add(Row(study_id=study_id, flow=flow, what="made", run_id=run_id))
        run = ReprocessedRun(flow=flow, flow_run_id=run_id, request_id=self._request_id)
        self._ledger.reprocessed(run, study_id=study_id)

    def _not_processed(self, study_id: str, reason: str) -> None:
        self._result.add(Row(study_id=study_id, what="not processed", reason=reason))

    def _await_room(self) -> None:
        """Return once one more run may wait, however long that takes."""
        while self._room <= 0:
            self._room = self._most_waiting - self._patiently(lambda: self._history.waiting(self._request_id))
            if self._room <= 0:
                self._pause(_LOOK_AGAIN_SECONDS)
        self._room -= 1

    def _patiently(self, ask: Callable[[], Answer]) -> Answer:
        """Return the answer, though Prefect may be away for a minute."""
        for attempt in range(_MOST_ATTEMPTS):
            try:
                return ask()
            except TriggerUnavailableError as error:
                seconds = wait_seconds(attempt)
                self._logger.warning("%s; again in %.1f s", error, seconds)
                self._pause(seconds)
        return ask()


def _why_not(study: LedgerStudy) -> str:
    """Return why a study is not to be processed again now; empty where it may be."""
    if study.outcome == "held":
        return f"study {study.study_id} is held ({study.reason}); `dicomflow release {study.study_id}` lets it go on"
    if study.outcome == "received":
        return f"study {study.study_id} was just received, and the gateway is yet to decide on it; ask again then"
    return ""
