"""The way from a decision to a run, as the gateway has it: ledger, outbox and trigger in one process."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Self

import httpx
from prefect.client.orchestration import SyncPrefectClient

from deployments.apply import bring_into_step
from dicom_gateway.ledger import Ledger
from dicom_gateway.outbox import Outbox
from dicom_gateway.prefect_trigger import PrefectTrigger
from flows_engine.definition.schema import FlowDefinition
from tests.fakes.definitions import FakeDefinitions
from tests.fakes.entered_studies import enter_study

_PATIENCE_SECONDS = 120.0


@dataclass
class Latencies:
    """How long something took, again and again, and how long all of it, of which several went on at once."""

    seconds: list[float] = field(default_factory=list)
    elapsed_seconds: float = 0.0

    def add(self, others: Latencies) -> None:
        self.seconds += others.seconds
        self.elapsed_seconds += others.elapsed_seconds

    @property
    def per_second(self) -> float:
        return len(self.seconds) / self.elapsed_seconds


def time_each(work: Callable[[int], float | None], *, count: int, parallel: int) -> Latencies:
    """Do ``work`` ``count`` times, ``parallel`` at once, each begun when one has ended. It may say what it took."""

    def one(number: int) -> float:
        began = time.perf_counter()
        told = work(number)
        return time.perf_counter() - began if told is None else told

    began = time.perf_counter()
    with ThreadPoolExecutor(parallel) as pool:
        seconds = list(pool.map(one, range(count)))
    return Latencies(seconds, time.perf_counter() - began)


class _NotingLedger(Ledger):
    """Notes when it is written down that a run exists."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self._noted: dict[str, float] = {}
        self._changed = threading.Condition()

    def created(self, idempotency_key: str, *, flow_run_id: str) -> None:
        super().created(idempotency_key, flow_run_id=flow_run_id)
        with self._changed:
            self._noted[idempotency_key] = time.perf_counter()
            self._changed.notify_all()

    def await_created(self, idempotency_key: str) -> float:
        with self._changed:
            if not self._changed.wait_for(lambda: idempotency_key in self._noted, timeout=_PATIENCE_SECONDS):
                raise TimeoutError(f"a study was not triggered within {_PATIENCE_SECONDS:g} s")
            return self._noted[idempotency_key]


class TriggerPath:
    """Triggers studies of ``definitions``, in turn, on the server at ``api_url``."""

    def __init__(self, api_url: str, folder: Path, definitions: Sequence[FlowDefinition]) -> None:
        self._api_url = api_url
        self._definitions = definitions
        self._ledger = _NotingLedger(folder / "ledger.sqlite")
        self._trigger = PrefectTrigger(SyncPrefectClient(api_url))
        self._outbox = Outbox(self._ledger, self._trigger, FakeDefinitions(*definitions))
        self._keys: list[str] = []

    def __enter__(self) -> Self:
        with SyncPrefectClient(self._api_url) as client:
            bring_into_step(client, self._definitions)
        self._trigger.__enter__()
        self._outbox.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._outbox.stop()
        self._trigger.__exit__(kind, error, trace)
        self._ledger.close()

    def measure(self, *, count: int, parallel: int) -> Latencies:
        """Trigger ``count`` studies, ``parallel`` at once; from when the decision is in the ledger until the run is."""
        return time_each(self._one, count=count, parallel=parallel)

    def pile_up(self, count: int) -> None:
        """Enter ``count`` studies of which the outbox is not told, as they come in while Prefect is away."""
        self._outbox.stop()
        for _ in range(count):
            self._enter()

    def work_off(self) -> float:
        """Start the outbox on what has piled up, as after a restart; return the seconds until all is triggered."""
        self._outbox = Outbox(self._ledger, self._trigger, FakeDefinitions(*self._definitions))
        began = time.perf_counter()
        self._outbox.start()
        while self._ledger.next_due(now=time.time(), horizon_seconds=0) is not None:
            time.sleep(0.1)
        return time.perf_counter() - began

    def check(self, *, others: int = 0) -> int:
        """Return how many runs there are, exactly one for each study, beside ``others``; raise unless that is so."""
        on_server = httpx.post(f"{self._api_url}/flow_runs/count", json={}, timeout=60).raise_for_status().json()
        studies = self._ledger.studies(limit=len(self._keys) + 1)
        known = {run.flow_run_id for study in studies for run in study.runs if run.state == "created"}
        if not len(known) == len(self._keys) == on_server - others:
            raise AssertionError(
                f"studies: {len(self._keys)}, runs that the ledger knows: {len(known)}, on the server: {on_server}"
            )
        return len(known)

    def _one(self, _number: int) -> float:
        key = self._enter()
        decided = time.perf_counter()
        self._outbox.wake()
        return self._ledger.await_created(key) - decided

    def _enter(self) -> str:
        key = enter_study(self._ledger, self._definitions[len(self._keys) % len(self._definitions)])
        self._keys.append(key)
        return key
