"""The runs that the ledger asks for are created in Prefect, however long Prefect is away. Knows no Prefect itself."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Final

from pydantic import ValidationError

from dicom_gateway.errors import TriggerRefusedError, TriggerUnavailableError
from dicom_gateway.interfaces import RunTrigger
from dicom_gateway.ledger import Ledger, PendingRun
from flows_engine.handoff.run_request import RunRequest

_log = logging.getLogger(__name__)

LONGEST_WAIT_SECONDS: Final = 30.0
_FIRST_WAIT_SECONDS: Final = 0.5
_AT_ONCE: Final = 4
_MOST_IN_HAND: Final = 64
_ACTION: Final = {"action": "trigger"}


def wait_seconds(attempts: int) -> float:
    """Return how long to wait after ``attempts`` failures in a row: it doubles, up to half a minute. Pure."""
    return float(min(LONGEST_WAIT_SECONDS, _FIRST_WAIT_SECONDS * 2 ** min(attempts, 16)))


class Outbox:
    """Takes pending runs from the ledger and has them created, several at a time, each at most once at a time.

    A run counts as created only once the ledger says so. Where that entry fails, the run is asked for again under the
    same idempotency key, which gives the same run.
    """

    def __init__(self, ledger: Ledger, trigger: RunTrigger, *, clock: Callable[[], float] = time.time) -> None:
        self._ledger = ledger
        self._trigger = trigger
        self._clock = clock
        self._changed = threading.Condition()
        self._in_flight: set[str] = set()
        self._woken = False
        self._stopping = False
        self._pool = ThreadPoolExecutor(max_workers=_AT_ONCE, thread_name_prefix="outbox")
        self._thread = threading.Thread(target=self._run, name="outbox", daemon=True)

    def start(self) -> None:
        """Begin, with whatever the ledger holds."""
        self._thread.start()

    def stop(self) -> None:
        """Take no more runs, and wait for those that are being created."""
        with self._changed:
            self._stopping = True
            self._changed.notify_all()
        if self._thread.ident is not None:
            self._thread.join()
        self._pool.shutdown(wait=True, cancel_futures=True)

    def wake(self) -> None:
        """Look at the ledger now: there is something new in it."""
        with self._changed:
            self._woken = True
            self._changed.notify_all()

    def _run(self) -> None:
        while True:
            wait_until = self._submit_due()
            with self._changed:
                if not self._woken and not self._stopping:
                    self._changed.wait(timeout=max(0.0, min(wait_until - self._clock(), LONGEST_WAIT_SECONDS)))
                self._woken = False
                if self._stopping:
                    return

    def _submit_due(self) -> float:
        now = self._clock()
        try:
            ready = self._ledger.due(now=now, horizon_seconds=LONGEST_WAIT_SECONDS, limit=_MOST_IN_HAND)
            next_due = self._ledger.next_due_at(now=now)
        except Exception as error:  # noqa: BLE001  # the thread must outlive a ledger that cannot be read for a moment
            _log.error("the ledger cannot be read (%s); trying again", type(error).__name__, extra=_ACTION)
            return now + wait_seconds(1)
        for run in ready:
            with self._changed:
                if run.idempotency_key in self._in_flight:
                    continue
                self._in_flight.add(run.idempotency_key)
            self._pool.submit(self._create, run)
        return now + LONGEST_WAIT_SECONDS if next_due is None else next_due

    def _create(self, run: PendingRun) -> None:
        try:
            self._create_and_record(run)
        except Exception as error:  # noqa: BLE001  # outer edge of a pool thread: the row stays pending and is taken up again
            _log.error("the outcome of a run could not be written down (%s)", type(error).__name__, extra=_extra(run))
            time.sleep(wait_seconds(0))
        finally:
            with self._changed:
                self._in_flight.discard(run.idempotency_key)
                self._woken = True
                self._changed.notify_all()

    def _create_and_record(self, run: PendingRun) -> None:
        try:
            request = RunRequest.model_validate_json(run.request_json)
        except ValidationError:
            self._refused(
                run, reason="the request was written by another version and cannot be read; release the study"
            )
            return
        try:
            flow_run_id = self._trigger.trigger(request, idempotency_key=run.idempotency_key)
        except TriggerRefusedError as error:
            self._refused(run, reason=str(error))
        except TriggerUnavailableError as error:
            self._postpone(run, reason=str(error))
        except Exception as error:  # noqa: BLE001  # whatever a client throws, a study is not dropped for it
            # Its text may quote the request.
            self._postpone(run, reason=f"creating the run failed with {type(error).__name__}")
        else:
            self._ledger.created(run.idempotency_key, flow_run_id=flow_run_id)
            _log.info("a run was created for flow %s", run.flow, extra={**_extra(run), "flow_run_id": flow_run_id})

    def _refused(self, run: PendingRun, *, reason: str) -> None:
        self._ledger.refused(run, error=reason)
        _log.error("a run cannot be created; its study is held: %s", reason, extra=_extra(run))

    def _postpone(self, run: PendingRun, *, reason: str) -> None:
        seconds = wait_seconds(run.attempts)
        self._ledger.postpone(run.idempotency_key, error=reason, next_attempt_at=self._clock() + seconds)
        _log.warning("a run cannot be created yet; again in %.1f s: %s", seconds, reason, extra=_extra(run))


def _extra(run: PendingRun) -> dict[str, str]:
    return {**_ACTION, "study_id": run.study_id, "flow": run.flow}
