"""RunTrigger in memory: the twin of the one that talks to Prefect, and of its failures."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from uuid import uuid4

from dicom_gateway.errors import TriggerError
from flows_engine.handoff.run_request import RunRequest


class FakeRunTrigger:
    """Creates runs in memory: the same key gives the same run."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._failures: list[TriggerError | Exception] = []
        self.away: Exception | None = None
        """How every call ends, until it is None again."""
        self.broken_flows: dict[str, Exception] = {}
        """How every call for a flow ends, until the flow is taken out."""
        self.runs: dict[str, str] = {}
        self.requests: dict[str, RunRequest] = {}
        self.queues: dict[str, str] = {}
        self.tags: dict[str, frozenset[str]] = {}
        self.calls: list[str] = []

    def fail_next(self, *failures: Exception) -> None:
        """Let the next calls end like this, one each."""
        with self._lock:
            self._failures.extend(failures)

    def trigger(self, request: RunRequest, *, idempotency_key: str, queue: str = "", tags: Sequence[str] = ()) -> str:
        """Create the run, unless it is there already, and return its id."""
        with self._lock:
            self.calls.append(idempotency_key)
            if self._failures:
                raise self._failures.pop(0)
            if error := self.away or self.broken_flows.get(request.definition.name):
                raise error
            self.requests.setdefault(idempotency_key, request)
            self.queues.setdefault(idempotency_key, queue)
            self.tags.setdefault(idempotency_key, frozenset(tags))
            return self.runs.setdefault(idempotency_key, str(uuid4()))
