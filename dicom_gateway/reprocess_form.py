"""The parameters of a request as types, from which Prefect's UI makes its form. They say what a person reads there.

Prefect takes titles and descriptions from here only as extras of the schema: a field's own it replaces. Moments are
text on purpose: Prefect's picker of dates means UTC, refuses an empty one, and knows no ``30d``.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, JsonValue, WithJsonSchema
from pydantic.fields import FieldInfo

from flows_engine.definition.naming import PRIORITIES
from flows_engine.handoff.run_request import LONGEST_NOTE


def _shown(title: str, description: str, *, max_length: int | None = None, pattern: str | None = None) -> FieldInfo:
    shown: dict[str, JsonValue] = {"title": title, "description": description}
    if pattern is not None:
        shown["pattern"] = pattern
    field: FieldInfo = Field(json_schema_extra=shown, max_length=max_length)
    return field


Study = Annotated[
    str,
    _shown(
        "Study",
        "One study: its study id, as `dicomflow studies` lists them, or its StudyInstanceUID. Leave it empty for all "
        "studies of a span of time.",
        # A patient's name that is typed here is refused before Prefect has kept it.
        pattern=r"^\s*([0-9a-f-]{8,64}|[0-9.]{1,64})?\s*$",
    ),
]
Since = Annotated[
    str,
    _shown(
        "Since",
        "Instead of one study: all that were received from this moment on. Write 12h or 30d, which is so long ago, or "
        "2024-05-01, or 2024-05-01T14:30, in the site's own time.",
    ),
]
Until = Annotated[
    str, _shown("Until", "All that were received before this moment, written likewise. If it is empty: until now.")
]
FlowName = Annotated[
    str,
    _shown(
        "Flow",
        "One flow by its name; it runs whether it matches or not. If it is empty: every flow that matches now.",
    ),
]
OnlyMatching = Annotated[
    bool, _shown("Only where it matches", "Run the flow that is named above only on studies that it matches.")
]
Priority = Annotated[
    int | None,
    # A choice, in the form. As a number that may be left out it would be refused when it is.
    WithJsonSchema({"enum": [None, *PRIORITIES]}),
    _shown(
        "Priority",
        "0 to 5, of which 5 runs first. None: one study has the priority of its flow, and those of a span of time wait "
        "until nothing else does.",
    ),
]
Note = Annotated[
    str,
    _shown(
        "Note",
        "Why, in a few words, like `model v2`. It is shown with every run, to all who can open this page: no patient "
        "data belongs here.",
        max_length=LONGEST_NOTE,
    ),
]
Receptions = Annotated[
    Literal["newest", "all"],
    _shown("Receptions", "Which ones, where a StudyInstanceUID was received several times: the newest, or all."),
]
DryRun = Annotated[bool, _shown("Dry run", "Make no run; only tell which there would be, and why not others.")]
