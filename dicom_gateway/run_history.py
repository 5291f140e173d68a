"""The runs that a Prefect server knows of a study, and those of one request: asked before a run is made again."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from types import TracebackType
from typing import Any, Final, Self
from uuid import UUID

import httpx
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.filters import (
    FlowFilter,
    FlowFilterName,
    FlowRunFilter,
    FlowRunFilterName,
    FlowRunFilterStartTime,
    FlowRunFilterState,
    FlowRunFilterStateType,
    FlowRunFilterTags,
)
from prefect.client.schemas.objects import FlowRun, StateType
from prefect.client.schemas.responses import OrchestrationResult, SetStateStatus
from prefect.exceptions import ObjectNotFound, PrefectHTTPStatusError
from prefect.states import Cancelled, Scheduled
from pydantic import ValidationError

from dicom_gateway.errors import TriggerUnavailableError
from dicom_gateway.interfaces import StudyRun
from flows_engine.definition import naming
from flows_engine.definition.schema import FlowDefinition

WITHDRAWN: Final = "withdrawn: the request to process its study again was cancelled"
_PAGE: Final = 200
_REQUEST_PREFIX: Final = naming.request_tag("")
_UNKNOWN_MOMENT: Final = datetime.fromtimestamp(0, tz=UTC)


class PrefectRunHistory:
    """A ``RunHistory`` on a Prefect server."""

    def __init__(self, client: SyncPrefectClient | None = None) -> None:
        self._client = client or get_client(sync_client=True)

    def __enter__(self) -> Self:
        self._client.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._client.__exit__(kind, error, trace)

    def runs_of(self, study_id: str, *, flows: Collection[str]) -> list[StudyRun]:
        """Return all runs of ``flows`` on a study, whoever made them, and whatever became of them."""
        # By name, not by the study's tag: Prefect has an index of names, and searches all runs for a tag.
        names = [naming.run_name(flow, study_id) for flow in flows]
        wanted = FlowRunFilter(name=FlowRunFilterName(any_=names))
        return [run for found in self._read(wanted) if (run := _study_run(found)).flow in flows]

    def waiting(self, request_id: str) -> int:
        """Return how many of the runs that a request made have not begun."""
        with _unavailable_in_one_line():
            return self._client.count_flow_runs(flow_filter=_OURS, flow_run_filter=_waiting(request_id))

    def withdraw(self, request_id: str) -> int:
        """Cancel those of the runs that a request made which have not begun, and return how many there were.

        One that a worker has taken goes on.
        """
        withdrawn = 0
        seen: set[UUID] = set()
        # What was being made at the moment of the cancellation comes to light by looking again.
        while waiting := {run.id for run in self._read(_waiting(request_id))} - seen:
            withdrawn += sum(map(self._withdraw, sorted(waiting)))
            seen |= waiting
        return withdrawn

    def withdraw_cancelled(self) -> int:
        """Cancel what waits of requests that were cancelled while nobody could see to it; return how many runs.

        That is so where a request had not begun again after a retry, or its host was off, or Prefect did not answer.
        """
        requests = {request_id for run in self._read(_WAITING_AGAIN) for request_id in _request_ids(run)}
        return sum(self.withdraw(request_id) for request_id in sorted(requests) if self._is_cancelled(request_id))

    def _is_cancelled(self, request_id: str) -> bool:
        with _unavailable_in_one_line(), suppress(ObjectNotFound, ValueError):
            return self._client.read_flow_run(UUID(request_id)).state_type == StateType.CANCELLED
        return False

    def _withdraw(self, run_id: UUID) -> bool:
        with _unavailable_in_one_line(), suppress(ObjectNotFound):
            # A list of two hundred is seconds old at its end, and what has begun meanwhile is to go on.
            if self._client.read_flow_run(run_id).state_type == StateType.SCHEDULED:
                answer: OrchestrationResult[Any] = self._client.set_flow_run_state(run_id, Cancelled(message=WITHDRAWN))
                return answer.status == SetStateStatus.ACCEPT
        return False

    def _read(self, wanted: FlowRunFilter) -> Iterator[FlowRun]:
        offset = 0
        while True:
            with _unavailable_in_one_line():
                page = self._client.read_flow_runs(
                    flow_filter=_OURS, flow_run_filter=wanted, limit=_PAGE, offset=offset
                )
            yield from page
            offset += len(page)
            if len(page) < _PAGE:
                return


_OURS: Final = FlowFilter(name=FlowFilterName(any_=[naming.FLOW_NAME]))


def _waiting(request_id: str) -> FlowRunFilter:
    return _waiting_with(naming.request_tag(request_id))


def _waiting_with(tag: str) -> FlowRunFilter:
    return FlowRunFilter(
        tags=FlowRunFilterTags(all_=[tag]),
        state=FlowRunFilterState(type=FlowRunFilterStateType(any_=[StateType.SCHEDULED])),
        start_time=FlowRunFilterStartTime(is_null_=True),
    )


_WAITING_AGAIN: Final = _waiting_with(naming.reason_tag("reprocess"))


def _request_ids(run: FlowRun) -> frozenset[str]:
    return frozenset(tag.removeprefix(_REQUEST_PREFIX) for tag in run.tags if tag.startswith(_REQUEST_PREFIX))


def _study_run(run: FlowRun) -> StudyRun:
    try:
        definition = FlowDefinition.model_validate(run.parameters.get("definition"))
    except ValidationError:  # of a version that knew other keys; what it is called stands in its name
        flow, digest = run.name.rpartition(" ")[0], ""
    else:
        flow, digest = definition.name, definition.digest
    state = run.state or Scheduled()
    return StudyRun(
        run_id=str(run.id),
        flow=flow,
        digest=digest,
        state=state.name or "",
        is_over=state.is_final(),
        created_at=run.created or _UNKNOWN_MOMENT,
        request_ids=_request_ids(run),
        was_withdrawn=state.is_cancelled() and state.message == WITHDRAWN,
    )


@contextmanager
def _unavailable_in_one_line() -> Iterator[None]:
    try:
        yield
    except httpx.TransportError as error:
        raise TriggerUnavailableError(f"Prefect does not answer ({type(error).__name__})") from None
    except PrefectHTTPStatusError as error:
        raise TriggerUnavailableError(f"Prefect answers with HTTP status {error.response.status_code}") from None
