"""The parameters of one flow run."""

from __future__ import annotations

from datetime import datetime

from pydantic import BaseModel, ConfigDict, Field

from flows_engine.definition.naming import Reason
from flows_engine.definition.schema import FlowDefinition


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

    study_id: str = Field(pattern=r"^[0-9a-f-]{8,64}$")
    study_uri: str
    sender: Sender
    received_at: datetime
    reason: Reason = "received"
    definition: FlowDefinition
