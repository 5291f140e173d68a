"""What a person asks for: the parameters of a request as a value that means one thing. Pure."""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import datetime
from typing import Final, Literal, get_args

from dicom_gateway.errors import RequestError
from dicom_gateway.moments import read_moment
from flows_engine.definition.naming import PRIORITIES
from flows_engine.handoff.run_request import is_study_id, note_on_one_line

Receptions = Literal["newest", "all"]

_UID: Final = re.compile(r"[0-9.]{1,64}")


@dataclass(frozen=True, kw_only=True)
class ReprocessRequest:
    """One study, by its study id or a StudyInstanceUID, or all that were received in a span of time, but not both."""

    study: str = ""
    since: datetime | None = None
    until: datetime | None = None
    """Not included."""
    flow: str = ""
    """The one flow to run. If empty: every flow that matches now."""
    only_matching: bool = False
    """Whether ``flow`` is to run only where it matches. Without a flow that goes without saying."""
    priority: int | None = None
    note: str = ""
    receptions: Receptions = "newest"
    dry_run: bool = False

    @property
    def in_bulk(self) -> bool:
        """Whether it is about whatever studies a span of time holds, rather than about one that was named."""
        return not self.study


def read_request(
    *,
    study: str = "",
    since: str = "",
    until: str = "",
    flow: str = "",
    only_matching: bool = False,
    priority: int | None = None,
    note: str = "",
    receptions: str = "newest",
    dry_run: bool = False,
    asked_at: datetime,
) -> ReprocessRequest:
    """Return what was asked for at ``asked_at``. Raises ``RequestError``: field, reason, way out.

    A span without an end ends at ``asked_at``: what arrives later is processed anyway.
    """
    study, flow = study.strip(), flow.strip()
    begin, end = (_moment(name, text, asked_at) for name, text in (("since", since), ("until", until)))
    if study and (begin or end):
        raise RequestError("study and since or until are both given; give either one study or a span of time")
    if not study and not (begin or end):
        raise RequestError("neither a study nor a span of time is given; name a study, or give since, like 2d")
    if study and not (is_study_id(study) or is_uid(study)):
        # What was typed instead may be a patient's name.
        raise RequestError("study: is neither a study id nor a StudyInstanceUID; `dicomflow studies` lists study ids")
    if not study and begin and begin >= (end or asked_at):
        raise RequestError("since: is not before until (or now); exchange them, or take an earlier moment")
    if priority is not None and priority not in PRIORITIES:
        raise RequestError(f"priority: {priority} is not 0 to 5, of which 5 runs first")
    if receptions not in get_args(Receptions):
        raise RequestError("receptions: is neither newest nor all")
    return ReprocessRequest(
        study=study,
        since=begin,
        until=None if study else end or asked_at,
        flow=flow,
        only_matching=only_matching,
        priority=priority,
        note=_note(note),
        receptions="all" if receptions == "all" else "newest",
        dry_run=dry_run,
    )


def is_uid(text: str) -> bool:
    """Tell whether ``text`` has the form of a UID, be it a valid one or not (PS3.5 9.1): senders make mistakes."""
    return "." in text and _UID.fullmatch(text) is not None


def _moment(name: str, text: str, asked_at: datetime) -> datetime | None:
    if not text.strip():
        return None
    try:
        return read_moment(text, now=asked_at)
    except ValueError as error:
        raise RequestError(f"{name}: {error}") from None


def _note(text: str) -> str:
    try:
        return note_on_one_line(text)
    except ValueError as error:
        raise RequestError(f"note: {error}") from None
