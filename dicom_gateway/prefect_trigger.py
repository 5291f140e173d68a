"""Creates a flow run in Prefect, once, whatever crashes."""

from __future__ import annotations

from collections.abc import Sequence
from types import TracebackType
from typing import Any, Final, Self
from uuid import UUID

import httpx
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.actions import DeploymentFlowRunCreate
from prefect.client.schemas.filters import DeploymentFilter, DeploymentFilterName, FlowFilter, FlowFilterName
from prefect.exceptions import PrefectHTTPStatusError

from dicom_gateway.errors import (
    FlowUnavailableError,
    NotDeployedError,
    TriggerRefusedError,
    TriggerUnavailableError,
)
from dicom_gateway.gathered_calls import GatheredCalls
from flows_engine.definition import naming
from flows_engine.handoff.run_request import RunRequest

# Answers that judge this one run. What lies behind any other, a wrong key or a proxy too, can be put right.
_REFUSING_STATUS = {413, 422}
# Answers that say nothing of the run, nor of its flow: no access, a proxy without a server, a server without database.
_UNAVAILABLE_STATUS = {401, 403, 407, 408, 429, 502, 503, 504}

_MOST_TOGETHER: Final = 16
_BULK_ROUTE: Final[Any] = "/deployments/{id}/create_flow_run/bulk"
"""Prefect's server has it; the types of its client do not know it yet."""


class PrefectTrigger:
    """A ``RunTrigger`` on a Prefect server. Prefect itself keeps the idempotency key with the run, in its database.

    Runs of one deployment that are asked for while one is being made are made in one request: that is a third less work
    for Prefect's server.
    """

    def __init__(self, client: SyncPrefectClient | None = None) -> None:
        self._client = client or get_client(sync_client=True)
        self._deployment_ids: dict[str, UUID] = {}
        self._gathered = GatheredCalls(self._create_together, most=_MOST_TOGETHER)

    def __enter__(self) -> Self:
        self._client.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._client.__exit__(kind, error, trace)

    def trigger(self, request: RunRequest, *, idempotency_key: str, queue: str = "", tags: Sequence[str] = ()) -> str:
        """Create the flow run that ``request`` describes, unless it is there already, and return its id."""
        name = request.definition.name
        try:
            deployment_id = self._deployment_id(name)
            run = DeploymentFlowRunCreate(
                name=naming.run_name(name, request.study_id),
                parameters=request.model_dump(mode="json", exclude_none=True),
                # A RunRequest is typed already. Prefect 3.8 would check the schema of the parameters against its
                # meta schema, twice, for every run: more work than all the rest of creating one.
                enforce_parameter_schema=False,
                idempotency_key=idempotency_key,
                tags=[naming.study_tag(request.study_id), *tags],
                work_queue_name=queue or naming.work_queue(request.definition.priority),
            )
            return self._gathered.call(deployment_id, run) or self._create(deployment_id, run)
        except httpx.TransportError as error:
            raise TriggerUnavailableError(f"Prefect does not answer ({type(error).__name__})") from None
        except PrefectHTTPStatusError as error:
            status = error.response.status_code
            if status == httpx.codes.NOT_FOUND:
                self._deployment_ids.pop(name, None)  # it may have been made anew, under another id
                raise _not_deployed(name) from None
            if status in _REFUSING_STATUS:
                raise TriggerRefusedError(f"Prefect refuses the run with HTTP status {status}") from None
            unavailable = TriggerUnavailableError if status in _UNAVAILABLE_STATUS else FlowUnavailableError
            raise unavailable(f"Prefect answers with HTTP status {status}") from None

    def _create_together(self, deployment_id: UUID, runs: Sequence[DeploymentFlowRunCreate]) -> Sequence[str | None]:
        """Create the runs; None for each where that did not work out, and each is to be asked for by itself.

        All are made in one transaction. Where one fails in the database, none of them is there, whatever Prefect says
        of the others; nor does an answer that judges all of them tell which one it means.
        """
        if len(runs) == 1:
            return [self._create(deployment_id, runs[0])]
        try:
            response = self._client.request(
                "POST",
                _BULK_ROUTE,
                path_params={"id": deployment_id},
                json=[run.model_dump(mode="json", exclude_unset=True) for run in runs],
            )
        except (httpx.WriteError, httpx.RemoteProtocolError):
            return [None] * len(runs)  # a proxy may take one, and not so many
        except PrefectHTTPStatusError as error:
            if error.response.status_code in _UNAVAILABLE_STATUS:
                raise
            return [None] * len(runs)
        results = response.json()["results"]
        if len(results) != len(runs) or any(result["status"] != "CREATED" for result in results):
            return [None] * len(runs)
        return [result["flow_run_id"] for result in results]

    def _create(self, deployment_id: UUID, run: DeploymentFlowRunCreate) -> str:
        # Not by the client's create_flow_run_from_deployment: it cannot say that the parameters are not to be checked.
        response = self._client.request(
            "POST",
            "/deployments/{id}/create_flow_run",
            path_params={"id": deployment_id},
            json=run.model_dump(mode="json", exclude_unset=True),
        )
        return str(response.json()["id"])

    def _deployment_id(self, name: str) -> UUID:
        if name not in self._deployment_ids:
            # Not by Prefect's lookup by name: it puts the name into a URL without quoting it.
            found = self._client.read_deployments(
                flow_filter=FlowFilter(name=FlowFilterName(any_=[naming.FLOW_NAME])),
                deployment_filter=DeploymentFilter(name=DeploymentFilterName(any_=[name])),
            )
            if not found:
                raise _not_deployed(name)
            self._deployment_ids[name] = found[0].id
        return self._deployment_ids[name]


def _not_deployed(name: str) -> NotDeployedError:
    return NotDeployedError(f"Prefect has no deployment {naming.deployment(name)} yet")
