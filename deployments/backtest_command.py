"""``dicomflow backtest``: what a definition would have matched, before it goes live. No run is made."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path

from rich.console import Console
from rich.progress import track

from deployments.errors import CommandError
from dicom_gateway.backtest import Backtest
from dicom_gateway.ledger import Ledger, ReceivedStudy
from dicom_gateway.moments import read_moment
from dicom_gateway.wiring import LEDGER_NAME, open_ledger
from flows_engine.definition.loading import load_definition
from flows_engine.definition.schema import FlowDefinition
from flows_engine.handoff.site_settings import SiteSettings
from flows_engine.handoff.study_match import match_study
from flows_engine.handoff.study_store import StudyNotFoundError, StudyStore


def print_backtest(
    console: Console,
    settings: SiteSettings,
    *,
    file: Path,
    since: str,
    until: str,
    limit: int,
    most_reasons: int = 10,
) -> None:
    """Match the definition in ``file`` against every study received in a span of time, and print what came of it.

    ``limit`` is how many ids of matching studies are printed. Raises ``DefinitionError`` and ``CommandError``.
    """
    begin, end = (_moment(name, text) for name, text in (("--since", since), ("--until", until)))
    loaded = load_definition(file, docker_kwargs_allowed=settings.docker_kwargs_allowed)
    for warning in loaded.warnings:
        console.print(f"warning: {warning}", markup=False, highlight=False, soft_wrap=True)
    if not (settings.data_dir / LEDGER_NAME).exists():
        raise CommandError(f"no study was received yet in {settings.data_dir}")
    result = Backtest(most_named=limit)
    with closing(open_ledger(settings.data_dir)) as ledger:
        studies = _shown(console, ledger, since=begin, until=end)
        store = StudyStore(settings.data_dir / "studies")
        for study in studies:
            _match(study, loaded.definition, store=store, ledger=ledger, result=result)
    lines = backtest_lines(result, name=loaded.definition.name, most_reasons=most_reasons)
    console.print("\n".join(lines), markup=False, highlight=False, soft_wrap=True)


def _moment(name: str, written: str) -> datetime | None:
    try:
        return read_moment(written, now=datetime.now(UTC)) if written.strip() else None
    except ValueError as error:
        raise CommandError(f"{name}: {error}") from None


def _shown(
    console: Console, ledger: Ledger, *, since: datetime | None, until: datetime | None
) -> Iterator[ReceivedStudy]:
    """Yield the studies, with a bar that shows how far it is, where somebody sits at the terminal."""
    yield from track(
        ledger.received(since=since, until=until),
        description="matching",
        total=ledger.count_received(since=since, until=until),
        console=console,
        transient=True,
        disable=not console.is_terminal,
    )


def _match(
    study: ReceivedStudy, definition: FlowDefinition, *, store: StudyStore, ledger: Ledger, result: Backtest
) -> None:
    try:
        (finding,) = match_study(store.record(study.study_id), [definition], store=store).flows
    except (StudyNotFoundError, OSError):
        result.add_unreadable()
        return
    ran_before = finding.verdict == "matched" and _ran_before(ledger, study.study_id, definition.name)
    result.add(study.study_id, finding, is_held=study.outcome == "held", ran_before=ran_before)


def _ran_before(ledger: Ledger, study_id: str, flow: str) -> bool:
    known = ledger.study(study_id)
    if known is None:
        return False
    return any(run.flow == flow and run.state == "created" for run in known.runs) or any(
        run.flow == flow for run in known.reprocessed
    )


def backtest_lines(result: Backtest, *, name: str, most_reasons: int) -> list[str]:
    """Return what came of a backtest of the flow ``name``, line by line. Pure; no value of a patient is in it."""
    covered = f"   {result.ran_before} of them ran under the name {name} before" if result.ran_before else ""
    held = f"   {result.held} of them are held" if result.held else ""
    lines = [
        f"{result.studies:7} studies",
        f"{result.matched:7} matched{covered}{held}",
        f"{result.not_matched:7} not matched",
    ]
    reasons = result.reasons()
    lines += [f"        {count:7}  {reason}" for reason, count in reasons[:most_reasons]]
    if len(reasons) > most_reasons:
        lines.append(f"                 and {len(reasons) - most_reasons} other reasons")
    if result.undecided:
        lines.append(f"{result.undecided:7} undecided")
        lines += [f"        {count:7}  {problem}" for problem, count in result.problems()[:most_reasons]]
    if result.unreadable:
        lines.append(f"{result.unreadable:7} whose files are gone or damaged")
    if result.matched_ids:
        lines += ["", "matched:", *result.matched_ids]
        if result.matched > len(result.matched_ids):
            lines.append(f"and {result.matched - len(result.matched_ids)} more; --limit shows them")
    return lines
