"""The runs that the ledger asks for are created in Prefect, however long Prefect is away. Knows no Prefect itself.

However many runs wait, a server that is away is asked for one of them at a time, with growing pauses; and a flow whose
runs cannot be created holds up none but its own.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Final

from pydantic import ValidationError

from dicom_gateway.backing_off import LONGEST_WAIT_SECONDS, Pause, after_failure, wait_seconds
from dicom_gateway.errors import (
    FlowUnavailableError,
    NotDeployedError,
    TriggerRefusedError,
    TriggerUnavailableError,
)
from dicom_gateway.interfaces import Definitions, RunTrigger
from dicom_gateway.ledger import EVERY_FLOW, Ledger, PendingRun
from flows_engine.handoff.run_request import RunRequest

_log = logging.getLogger(__name__)

GONE_SECONDS: Final = 60.0
"""How long a flow without definition and deployment is waited for. An editor may remove a file to write it anew."""

AT_ONCE: Final = 16
"""A trigger may make several of one flow in one go, for which they have to be asked for at once."""
_ACTION: Final = {"action": "trigger"}


class Outbox:
    """Takes pending runs from the ledger, by priority and then oldest first, and has them created, several at a time.

    A run counts as created only once the ledger says so. Where that entry fails, the run is asked for again under the
    same idempotency key, which gives the same run.
    """

    def __init__(
        self,
        ledger: Ledger,
        trigger: RunTrigger,
        definitions: Definitions,
        *,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._ledger = ledger
        self._trigger = trigger
        self._definitions = definitions
        self._clock = clock
        self._changed = threading.Condition()
        self._in_flight: dict[str, str] = {}
        self._pauses: dict[str, Pause] = {}
        self._woken = False
        self._stopping = False
        self._pool = ThreadPoolExecutor(max_workers=AT_ONCE, thread_name_prefix="outbox")
        self._thread = threading.Thread(target=self._run, name="outbox", daemon=True)

    def start(self) -> None:
        """Begin, with whatever the ledger holds."""
        self._ledger.forget_delays()
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
            look_again_at = self._submit_due()
            with self._changed:
                if not self._woken and not self._stopping:
                    self._changed.wait(timeout=max(0.0, min(look_again_at - self._clock(), LONGEST_WAIT_SECONDS)))
                self._woken = False
                if self._stopping:
                    return

    def _submit_due(self) -> float:
        now = self._clock()
        try:
            while run := self._next_run(now):
                with self._changed:
                    self._in_flight[run.idempotency_key] = run.flow
                self._pool.submit(self._create, run)
            next_due = self._ledger.next_due_at(now=now)
        except Exception as error:  # noqa: BLE001  # the thread must outlive a ledger that cannot be read for a moment
            _log.error("the ledger cannot be read (%s); trying again", type(error).__name__, extra=_ACTION)
            return now + wait_seconds(1)
        with self._changed:
            ends = [pause.until for pause in self._pauses.values() if pause.lasts(now=now)]
        return min([now + LONGEST_WAIT_SECONDS, *ends, *([] if next_due is None else [next_due])])

    def _next_run(self, now: float) -> PendingRun | None:
        """Return the run that may be created next. After a failure, one run at a time tries if it works again."""
        with self._changed:
            everything = self._pauses.get(EVERY_FLOW)
            room = AT_ONCE if everything is None else 1
            if (everything is not None and everything.lasts(now=now)) or len(self._in_flight) >= room:
                return None
            in_flight = dict(self._in_flight)
            paused = dict(self._pauses)
        trying = set(in_flight.values())
        return self._ledger.next_due(
            now=now,
            horizon_seconds=LONGEST_WAIT_SECONDS,
            except_keys=in_flight,
            except_flows=[flow for flow, pause in paused.items() if flow in trying or pause.lasts(now=now)],
        )

    def _create(self, run: PendingRun) -> None:
        try:
            self._create_and_record(run)
        except Exception as error:  # noqa: BLE001  # outer edge of a pool thread: the row stays pending and is taken up again
            _log.error("the outcome of a run could not be written down (%s)", type(error).__name__, extra=_extra(run))
            time.sleep(wait_seconds(0))
        finally:
            with self._changed:
                del self._in_flight[run.idempotency_key]
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
            self._works(EVERY_FLOW, run.flow)
            self._refused(run, reason=str(error))
        except NotDeployedError as error:
            self._works(EVERY_FLOW)
            self._not_deployed(run, reason=str(error))
        except FlowUnavailableError as error:
            self._failed(run, run.flow, reason=str(error))
        except TriggerUnavailableError as error:
            self._failed(run, EVERY_FLOW, reason=str(error))
        except Exception as error:  # noqa: BLE001  # whatever a client throws, a study is not dropped for it
            # Its text may quote the request.
            self._failed(run, run.flow, reason=f"creating the run failed with {type(error).__name__}")
        else:
            self._ledger.created(run.idempotency_key, flow_run_id=flow_run_id)
            self._works(EVERY_FLOW, run.flow)
            _log.info("a run was created for flow %s", run.flow, extra={**_extra(run), "flow_run_id": flow_run_id})

    def _refused(self, run: PendingRun, *, reason: str) -> None:
        self._ledger.refused(run, error=reason)
        _log.error("a run cannot be created; its study is held: %s", reason, extra=_extra(run))

    def _failed(self, run: PendingRun, scope: str, *, reason: str) -> None:
        """Put off what does not work, and this run longer, so that it is another one that tries next."""
        self._ledger.postpone(
            run.idempotency_key, error=reason, next_attempt_at=self._clock() + wait_seconds(run.attempts)
        )
        self._pause(run, scope, reason=reason)

    def _not_deployed(self, run: PendingRun, *, reason: str) -> None:
        pause = self._pause(run, run.flow, reason=reason)
        if self._clock() - pause.since < GONE_SECONDS or run.flow in self._definitions.snapshot():
            return
        error = "its definition was removed before the run was created; put it back, then release the study"
        count = self._ledger.refuse_all(run.flow, error=error)
        _log.error("runs cannot be created; studies held: %d; %s: %s", count, run.flow, error, extra=_extra(run))
        self._works(run.flow)

    def _pause(self, run: PendingRun, scope: str, *, reason: str) -> Pause:
        now = self._clock()
        # What is in the ledger must not outlive the pause: the two change together.
        with self._changed:
            before = self._pauses.get(scope)
            after = self._pauses[scope] = after_failure(before, reason=reason, now=now)
            if before is None or before.reason != reason:
                self._ledger.note_delay(scope, reason=reason)
        if before is None or before.failures != after.failures:
            what = "runs" if scope == EVERY_FLOW else f"runs of flow {scope}"
            seconds = after.until - now
            _log.warning("%s cannot be created yet; again in %.1f s: %s", what, seconds, reason, extra=_extra(run))
        return after

    def _works(self, *scopes: str) -> None:
        with self._changed:
            for scope in scopes:
                if scope in self._pauses:
                    # In this order: what the ledger cannot forget now, on a full disk, it is told again.
                    self._ledger.forget_delays(scope)
                    del self._pauses[scope]


def _extra(run: PendingRun) -> dict[str, str]:
    return {**_ACTION, "study_id": run.study_id, "flow": run.flow}
