"""What became of the studies, for a person at a terminal."""

from __future__ import annotations

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from dicom_gateway.explain import explain
from dicom_gateway.open_groups import WaitingGroup, waiting_groups
from dicom_gateway.spool import Spool
from dicom_gateway.wiring import LEDGER_NAME, open_ledger
from flows_engine.definition.catalogue import FlowCatalogue
from flows_engine.definition.schema import FlowDefinition
from flows_engine.handoff.site_settings import SiteSettings
from flows_engine.handoff.study_match import match_study, searched_columns
from flows_engine.handoff.study_store import StudyRecord, StudyStore

_WIDEST = 10_000


def print_studies(console: Console, settings: SiteSettings, *, limit: int) -> None:
    """Print the newest studies with their outcome. Nothing of a patient is in it."""
    if not (settings.data_dir / LEDGER_NAME).exists():
        console.print(
            f"no study was received yet in {settings.data_dir}", markup=False, highlight=False, soft_wrap=True
        )
        return
    table = Table(box=None, pad_edge=False)
    for heading in ("study", "received", "from", "instances", "outcome", "reason or runs"):
        table.add_column(heading, no_wrap=True)
    ledger = open_ledger(settings.data_dir)
    try:
        for group in _waiting(settings):
            since = group.received_at.astimezone().strftime("%Y-%m-%d %H:%M:%S")
            reason = f"waits for {group.waits_for}"
            line = ("", since, group.sender, str(group.instance_count), "receiving", reason)
            table.add_row(*(escape(cell) for cell in line))
        for study in ledger.studies(limit=limit):
            runs = [f"{run.flow} ({run.flow_run_id or run.last_error or 'waiting'})" for run in study.runs]
            again = [f"{run.flow} again ({run.flow_run_id})" for run in study.reprocessed]
            received = study.received_at.astimezone().strftime("%Y-%m-%d %H:%M:%S")
            cells = (study.study_id, received, study.sender, str(study.instance_count), study.outcome)
            table.add_row(*(escape(cell) for cell in (*cells, ", ".join([*(runs or [study.reason]), *again]))))
    finally:
        ledger.close()
    # One line a study, however narrow the terminal: ids are to be copied, and lines to be searched.
    Console(file=console.file, width=_WIDEST).print(table)


def _waiting(settings: SiteSettings) -> list[WaitingGroup]:
    try:
        return list(reversed(waiting_groups(Spool(settings.data_dir / "spool"))))
    except OSError:
        return []  # it is the gateway user's alone, or not there yet


def print_explanation(console: Console, settings: SiteSettings, *, study_id: str, with_values: bool) -> None:
    """Print which definitions, as they are now, match a study of the store, and why the others do not.

    Raises ``StudyNotFoundError``.
    """
    store = StudyStore(settings.data_dir / "studies")
    record = store.record(study_id)
    catalogue = FlowCatalogue(
        settings.flow_directory,
        state_folder=settings.data_dir / "definitions",
        docker_kwargs_allowed=settings.docker_kwargs_allowed,
        remember=False,
    )
    catalogue.refresh()
    definitions = list(catalogue.snapshot().values())
    console.print(explain(match_study(record, definitions, store=store)), markup=False, highlight=False)
    if with_values:
        _print_values(console, record, definitions, store=store)


def _print_values(
    console: Console, record: StudyRecord, definitions: list[FlowDefinition], *, store: StudyStore
) -> None:
    console.print("\nvalues in the study (patient data):")
    conditions = {
        condition.tag: condition.written
        for definition in definitions
        for trigger in definition.triggers
        for condition in trigger.conditions
    }
    columns = searched_columns(record, definitions, store=store)
    for tag, written in conditions.items():
        column = columns.get(tag)
        values = sorted({"\\".join(value) for value in column.values}) if column else []
        console.print(f"  {written}: {' | '.join(values or ['(in no instance)'])}", markup=False, highlight=False)
