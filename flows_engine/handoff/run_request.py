"""The parameters of one flow run."""

from __future__ import annotations

import re
from datetime import datetime
from typing import Annotated, Final

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from flows_engine.definition.naming import Reason
from flows_engine.definition.schema import FlowDefinition

LONGEST_NOTE: Final = 100
STUDY_ID_PATTERN: Final = r"^[0-9a-f-]{8,64}$"
_STUDY_ID: Final = re.compile(r"[0-9a-f-]{8,64}")


def is_study_id(text: str) -> bool:
    """Tell whether ``text`` has the form of a study id."""
    return _STUDY_ID.fullmatch(text) is not None


def note_on_one_line(written: str) -> str:
    """Return a note without the spaces around it. Raises ``ValueError`` for what is no short, printable line."""
    note = written.strip()
    if not note.isprintable():
        raise ValueError("is not one line of characters that can be seen")
    if len(note) > LONGEST_NOTE:
        raise ValueError(f"is longer than {LONGEST_NOTE} characters")
    return note


class Sender(BaseModel):
    """The application entity that sent a study. ``host`` is the address of the connection, not what the peer claims."""

    model_config = ConfigDict(frozen=True)

    ae_title: str
    host: str
    port: int


class RunRequest(BaseModel):
    """Everything a flow run is told. It names the study by an opaque id and holds no tag value of a patient.

    ``definition`` travels with the run, so that a retry means the same thing tomorrow, whatever the YAML says then.
    """

    model_config = ConfigDict(frozen=True)

    study_id: str = Field(pattern=STUDY_ID_PATTERN)
    study_uri: str
    sender: Sender
    received_at: datetime
    reason: Reason = "received"
    note: Annotated[str, AfterValidator(note_on_one_line)] = ""
    """What a person wrote about why the study is processed again, like ``model v2``."""
    definition: FlowDefinition
