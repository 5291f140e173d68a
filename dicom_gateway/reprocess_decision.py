"""What is to be done about one study that is processed again. Pure.

A run is made once for each time that a person asks: not twice because two people ask at once, nor because the one who
carries the request out was killed in between. Prefect gives the same run for the same idempotency key, so the key names
what was there before: the newest run of this flow on this study. Whoever asks while that is the newest gets the same
run; whoever asks once the new run is over gets another one.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Final

from dicom_gateway.errors import RequestError
from dicom_gateway.intake import idempotency_key
from dicom_gateway.interfaces import StudyRun
from dicom_gateway.reprocess_request import ReprocessRequest
from flows_engine.definition import naming
from flows_engine.definition.schema import FlowDefinition
from flows_engine.definition.wording import quoted
from flows_engine.handoff.matching import FlowFinding, MatchReport

_MOST_NAMED: Final = 10

Match = Callable[[Collection[FlowDefinition]], MatchReport]


@dataclass(frozen=True, kw_only=True)
class Choice:
    """Which flows run on a study, and what was found of the others."""

    run: tuple[FlowDefinition, ...]
    others: tuple[FlowFinding, ...]


@dataclass(frozen=True, kw_only=True)
class MakeRun:
    """A run is to be created under ``idempotency_key``."""

    idempotency_key: str


@dataclass(frozen=True, kw_only=True)
class LeftToGateway:
    """Nothing is to be done: the gateway is about to create this run, since the study was received."""


@dataclass(frozen=True, kw_only=True)
class ThereAlready:
    """Nothing is to be done: ``run`` was made by this very request, or is under way."""

    run: StudyRun
    by_this_request: bool


def candidates(definitions: Mapping[str, FlowDefinition], flow: str) -> tuple[FlowDefinition, ...]:
    """Return the definitions that a request is about: the one named ``flow``, or all. Raises ``RequestError``."""
    if not definitions:
        raise RequestError("no flow definition is in force; put one into FLOW_DIRECTORY, `dicomflow check` checks it")
    if not flow:
        return tuple(definitions.values())
    if flow not in definitions:
        close = difflib.get_close_matches(flow, definitions, n=1)
        hint = f"did you mean {close[0]}?" if close else f"there are {', '.join([*definitions][:_MOST_NAMED])}"
        raise RequestError(f"flow: there is no flow {quoted(flow)} ({hint})")
    return (definitions[flow],)


def choose(match: Match, definitions: Collection[FlowDefinition], request: ReprocessRequest) -> Choice:
    """Return which of ``definitions`` a request runs on a study. ``match`` says which of them fire on it."""
    if request.flow and not request.only_matching:
        return Choice(run=tuple(definitions), others=())
    report = match(definitions)
    return Choice(
        run=tuple(definition for definition in definitions if definition.name in report.matched),
        others=tuple(finding for finding in report.flows if finding.verdict != "matched"),
    )


def next_step(
    study_id: str,
    definition: FlowDefinition,
    *,
    request_id: str,
    runs: Collection[StudyRun],
    pending_keys: Collection[str],
) -> MakeRun | ThereAlready | LeftToGateway:
    """Return what a request has to do so that a flow runs on a study.

    ``runs`` are those of the study that Prefect knows. ``pending_keys`` are those of runs that the gateway is about to
    create because the study was received.
    """
    own_flow = sorted(
        (run for run in runs if run.flow == definition.name), key=lambda run: (run.created_at, run.run_id), reverse=True
    )
    # Only the newest: what it took the place of, in another queue, is not to be run again.
    made = next((run for run in own_flow if request_id in run.request_ids), None)
    if made is not None and not made.was_withdrawn:
        return ThereAlready(run=made, by_this_request=True)
    for run in own_flow:
        if not run.is_over and run.digest == definition.digest:
            return ThereAlready(run=run, by_this_request=False)
    first = idempotency_key(study_id, definition)
    # A run of a request waits behind live work, and is withdrawn with the request. This one is live work.
    if first in pending_keys:
        return LeftToGateway()
    # The same key as the gateway's: should it have been about to create this run after all, there is one run of both.
    if not own_flow:
        return MakeRun(idempotency_key=first)
    return MakeRun(idempotency_key=f"{first}:after:{own_flow[0].run_id}")


def queue(request: ReprocessRequest) -> str:
    """Return the queue in which the runs of a request wait; empty for the queue of the definition's own priority."""
    if request.priority is not None:
        return naming.work_queue(request.priority)
    return naming.BACKGROUND_QUEUE if request.in_bulk else ""
