"""``dicomflow reprocess``: asks for studies to be processed again, over Prefect's API, and tells what came of it."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final
from uuid import UUID, uuid4

from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.filters import (
    ArtifactFilter,
    ArtifactFilterFlowRunId,
    DeploymentFilter,
    DeploymentFilterName,
    FlowFilter,
    FlowFilterName,
    WorkerFilter,
    WorkerFilterStatus,
)
from prefect.client.schemas.objects import FlowRun, StateType, WorkerStatus
from prefect.client.schemas.sorting import ArtifactSort
from prefect.exceptions import ObjectNotFound
from rich.console import Console

from deployments.errors import CommandError
from deployments.server_errors import told_in_one_line
from dicom_gateway.reprocess_request import is_uid, read_request
from dicom_gateway.study_lookup import find_studies
from dicom_gateway.uid_key import find_uid_key
from dicom_gateway.wiring import LEDGER_NAME, open_ledger
from flows_engine.definition import naming
from flows_engine.handoff.site_settings import SiteSettings

_LOOK_AGAIN_SECONDS: Final = 0.5
_PATIENCE_SECONDS: Final = 15.0
_LINK: Final = re.compile(r"\[([^]]*)\]\([^)]*\)")


@dataclass(frozen=True, kw_only=True)
class Wish:
    """What a person typed behind the studies, as it was typed; the parameters of the flow have the same names."""

    since: str = ""
    until: str = ""
    flow: str = ""
    only_matching: bool = False
    priority: int | None = None
    note: str = ""
    receptions: str = "newest"
    dry_run: bool = False


def reprocess_studies(
    console: Console, settings: SiteSettings, *, studies: Sequence[str], wish: Wish, wait: bool
) -> int:
    """Make one request for each of ``studies``, or one for a span of time, and, with ``wait``, tell what comes of it.

    Returns the exit status: 1 if a request failed. Raises ``RequestError``, ``StartError`` and ``CommandError``.
    """
    requests = _requests(console, settings, studies, wish)
    with get_client(sync_client=True) as client, told_in_one_line(client.api_url):
        deployment_id = _deployment_id(client)
        asked = [
            client.create_flow_run_from_deployment(
                deployment_id, parameters=parameters, idempotency_key=str(uuid4())
            ).id
            for parameters in requests
        ]
        for run_id in asked:
            _say(console, f"request {run_id}")
        if not wait:
            return 0
        try:
            ended = [_await_end(console, client, run_id) for run_id in asked]
        except KeyboardInterrupt:
            _say(console, f"the request goes on; `prefect flow-run cancel {asked[-1]}` stops it")
            raise
        for run in ended:
            _tell(console, client, run)
    return 0 if all(run.state_type == StateType.COMPLETED for run in ended) else 1


def _requests(console: Console, settings: SiteSettings, studies: Sequence[str], wish: Wish) -> list[dict[str, Any]]:
    """Return the parameters of each request. A UID is looked up here: Prefect is told study ids alone."""
    asked_at = datetime.now(UTC)
    typed = {name: value for name, value in vars(wish).items() if value != getattr(Wish, name)}
    # Whatever is wrong with it is told before anything is asked for.
    read = [read_request(study=study, asked_at=asked_at, **typed) for study in studies or [""]]
    if not studies:
        (span,) = read
        moments = {"since": span.since, "until": span.until}
        return [{**typed, **{name: moment.isoformat() for name, moment in moments.items() if moment}}]
    found = [study_id for request in read for study_id in _study_ids(console, settings, request.study, wish.receptions)]
    return [{**typed, "study": study_id} for study_id in dict.fromkeys(found)]


def _study_ids(console: Console, settings: SiteSettings, study: str, receptions: str) -> Sequence[str]:
    if not (settings.data_dir / LEDGER_NAME).exists():
        if is_uid(study):
            raise CommandError(
                f"DATA_DIR: {settings.data_dir} has no ledger to look a StudyInstanceUID up in; "
                "name a study id, or run this where the gateway runs"
            )
        return [study]
    with closing(open_ledger(settings.data_dir)) as ledger:
        found = find_studies(study, ledger=ledger, uid_key=find_uid_key(settings.data_dir))
    if receptions == "all" or len(found) == 1:
        return found
    others = ", ".join(found[1:])
    _say(console, f"{found[0]} is the newest of {len(found)} receptions; others are {others} (--receptions all)")
    return found[:1]


def _deployment_id(client: SyncPrefectClient) -> UUID:
    found = client.read_deployments(
        flow_filter=FlowFilter(name=FlowFilterName(any_=[naming.REPROCESS_FLOW_NAME])),
        deployment_filter=DeploymentFilter(name=DeploymentFilterName(any_=[naming.REPROCESS_DEPLOYMENT_NAME])),
    )
    if not found:
        name = f"{naming.REPROCESS_FLOW_NAME}/{naming.REPROCESS_DEPLOYMENT_NAME}"
        raise CommandError(f"Prefect has no deployment {name}; `dicomflow deploy` makes it, and so does the gateway")
    return found[0].id


def _await_end(console: Console, client: SyncPrefectClient, run_id: UUID) -> FlowRun:
    """Return a request's run once it is over; meanwhile show its state, and what may be missing."""
    look_for_worker_at = time.monotonic() + _PATIENCE_SECONDS
    with console.status("") as status:
        while True:
            try:
                run = client.read_flow_run(run_id)
            except ObjectNotFound:
                raise CommandError(f"request {run_id} was deleted before it was over") from None
            if run.state is not None and run.state.is_final():
                return run
            status.update(f"{run.state_name}: request {run_id}")
            if run.start_time is None and time.monotonic() > look_for_worker_at:
                look_for_worker_at = float("inf")
                _tell_of_missing_worker(console, client)
            time.sleep(_LOOK_AGAIN_SECONDS)


def _tell_of_missing_worker(console: Console, client: SyncPrefectClient) -> None:
    online = WorkerFilter(status=WorkerFilterStatus(any_=[WorkerStatus.ONLINE]))
    if not client.read_workers_for_work_pool(naming.GATEWAY_POOL, worker_filter=online):
        _say(
            console,
            f"no worker of the pool {naming.GATEWAY_POOL} is online; `dicomflow up` has one, and so has "
            f"`dicomflow worker --pool {naming.GATEWAY_POOL}` on the gateway's host",
        )


def _tell(console: Console, client: SyncPrefectClient, run: FlowRun) -> None:
    """Print how a request ended, and its runs with their ids."""
    _say(console, f"{run.state_name}: {run.state.message if run.state else ''}")
    artifacts = client.read_artifacts(
        artifact_filter=ArtifactFilter(flow_run_id=ArtifactFilterFlowRunId(any_=[run.id])),
        sort=ArtifactSort.CREATED_DESC,
        limit=1,
    )
    for artifact in artifacts:
        for row in json.loads(str(artifact.data)):
            cells = (row["what"], row["study"], row["flow"], _LINK.sub(r"\1", row["run"]), row["reason"])
            _say(console, "  ".join(cell for cell in cells if cell))


def _say(console: Console, line: str) -> None:
    # As it is, on one line however narrow the terminal: ids are to be copied.
    console.print(line, markup=False, highlight=False, soft_wrap=True)
