"""The flow that has studies processed again: over REST, by a form in Prefect's UI, by its command line and by ours."""

from __future__ import annotations

import os
import traceback
from contextlib import ExitStack
from datetime import UTC, datetime
from typing import Any

import prefect
from prefect import Flow, State, get_run_logger
from prefect.artifacts import create_table_artifact
from prefect.client.schemas.objects import FlowRun
from prefect.context import FlowRunContext
from prefect.states import Completed, Failed

from dicom_gateway.errors import GatewayError, TriggerUnavailableError
from dicom_gateway.prefect_trigger import PrefectTrigger
from dicom_gateway.reprocess_form import (
    DryRun,
    FlowName,
    Note,
    OnlyMatching,
    Priority,
    Receptions,
    Since,
    Study,
    Until,
)
from dicom_gateway.reprocess_request import ReprocessRequest, read_request
from dicom_gateway.reprocess_result import ReprocessResult
from dicom_gateway.reprocessing import Logger, Reprocessing
from dicom_gateway.run_history import PrefectRunHistory
from dicom_gateway.uid_key import find_uid_key
from dicom_gateway.wiring import open_ledger
from flows_engine.definition import naming
from flows_engine.definition.catalogue import FlowCatalogue
from flows_engine.definition.schema import FlowDefinition
from flows_engine.handoff.run_claim import RunClaimedError, claim
from flows_engine.handoff.site_settings import SettingsError, SiteSettings, load_site_settings
from flows_engine.handoff.study_store import StudyStore


def withdraw_waiting_runs(flow: Flow[..., Any], flow_run: FlowRun, state: State[Any]) -> None:  # noqa: ARG001
    """Cancel those of a cancelled request's runs that have not begun."""
    with PrefectRunHistory() as history:
        history.withdraw(str(flow_run.id))


# The parameters are read by our own code, which says in one line what is wrong with them.
@prefect.flow(name=naming.REPROCESS_FLOW_NAME, validate_parameters=False, on_cancellation=[withdraw_waiting_runs])
def reprocess(  # noqa: PLR0917 - Prefect passes them by name
    study: Study = "",
    since: Since = "",
    until: Until = "",
    flow: FlowName = "",
    only_matching: OnlyMatching = False,
    priority: Priority = None,
    note: Note = "",
    receptions: Receptions = "newest",
    dry_run: DryRun = False,
) -> State[Any]:
    """Have studies processed again: one, or all of a span of time; by every flow that matches now, or by one.

    The state that is returned has one line for a person, and the artifact ``reprocess`` a row for each run.
    """
    flow_run = _flow_run()
    logger = get_run_logger()
    try:
        request = read_request(
            study=study,
            since=since,
            until=until,
            flow=flow,
            only_matching=only_matching,
            priority=priority,
            note=note,
            receptions=receptions,
            dry_run=dry_run,
            asked_at=flow_run.created or datetime.now(UTC),
        )
        settings = load_site_settings(os.environ).settings
        with claim(settings.data_dir / "runs" / str(flow_run.id)):
            result = _carry_out(request, request_id=str(flow_run.id), settings=settings, logger=logger)
    except TriggerUnavailableError as error:
        return Failed(message=f"{error}; retry this run: it makes no run a second time")
    except (GatewayError, RunClaimedError, SettingsError) as error:
        return Failed(message=" ".join(str(error).split()))
    except Exception as error:  # noqa: BLE001 - the outer edge of a run; the text may quote what a study holds
        sentence = f"it ended with an unforeseen {type(error).__name__}"
        logger.error("%s\n%s", sentence, "".join(traceback.format_tb(error.__traceback__)))  # noqa: TRY400 - no text
        return Failed(message=sentence)
    return (Failed if result.failed else Completed)(message=result.message())


def _flow_run() -> FlowRun:
    context = FlowRunContext.get()
    assert context is not None
    assert context.flow_run is not None
    return context.flow_run


def _carry_out(
    request: ReprocessRequest, *, request_id: str, settings: SiteSettings, logger: Logger
) -> ReprocessResult:
    definitions = _definitions_in_force(settings, logger)
    with ExitStack() as opened:
        ledger = open_ledger(settings.data_dir)
        opened.callback(ledger.close)
        reprocessing = Reprocessing(
            request,
            request_id=request_id,
            definitions=definitions,
            store=StudyStore(settings.data_dir / "studies"),
            ledger=ledger,
            uid_key=find_uid_key(settings.data_dir),
            history=opened.enter_context(PrefectRunHistory()),
            trigger=opened.enter_context(PrefectTrigger()),
            logger=logger,
        )
        result = reprocessing.carry_out()
        _show(result)
        # So long the request can be cancelled, and the runs with it that nobody has begun.
        if request.in_bulk and result.made:
            reprocessing.await_begun()
    return result


def _definitions_in_force(settings: SiteSettings, logger: Logger) -> dict[str, FlowDefinition]:
    catalogue = FlowCatalogue(
        settings.flow_directory,
        state_folder=settings.data_dir / "definitions",
        docker_kwargs_allowed=settings.docker_kwargs_allowed,
        remember=False,
    )
    for problem in catalogue.refresh().problems:
        logger.warning("%s", problem)
    return dict(catalogue.snapshot())


def _show(result: ReprocessResult) -> None:
    """Put what came of it beside the run, as a table in which each run is a link."""
    rows = result.table()
    if not rows:
        return
    for row in rows:
        row["run"] = f"[{row['run']}](/runs/flow-run/{row['run']})" if row["run"] else ""
    cut = f"; these are the first {len(rows)} of {result.row_count}" if result.row_count > len(rows) else ""
    create_table_artifact(key=naming.REPROCESS_FLOW_NAME, table=rows, description=result.message() + cut)
