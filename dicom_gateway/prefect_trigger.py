"""Creates a flow run in Prefect, once, whatever crashes."""

from __future__ import annotations

from collections.abc import Sequence
from types import TracebackType
from typing import Self
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
from flows_engine.definition import naming
from flows_engine.handoff.run_request import RunRequest

# Answers that judge this one run. What lies behind any other, a wrong key or a proxy too, can be put right.
_REFUSING_STATUS = {413, 422}
# Answers that say nothing of the run, nor of its flow: no access, a proxy without a server, a server without database.
_UNAVAILABLE_STATUS = {401, 403, 407, 408, 429, 502, 503, 504}


class PrefectTrigger:
    """A ``RunTrigger`` on a Prefect server. Prefect itself keeps the idempotency key with the run, in its database."""

    def __init__(self, client: SyncPrefectClient | None = None) -> None:
        self._client = client or get_client(sync_client=True)
        self._deployment_ids: dict[str, UUID] = {}

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
            run_id = self._create(
                self._deployment_id(name),
                DeploymentFlowRunCreate(
                    name=naming.run_name(name, request.study_id),
                    parameters=request.model_dump(mode="json", exclude_none=True),
                    # A RunRequest is typed already. Prefect 3.8 would check the schema of the parameters against its
                    # meta schema, twice, for every run: more work than all the rest of creating one.
                    enforce_parameter_schema=False,
                    idempotency_key=idempotency_key,
                    tags=[naming.study_tag(request.study_id), *tags],
                    work_queue_name=queue or naming.work_queue(request.definition.priority),
                ),
            )
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
        return run_id

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
