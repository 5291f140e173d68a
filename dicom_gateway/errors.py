"""What can go wrong until a flow run exists, named by what happens next.

    GatewayError
      ├─ SpoolFullError            the disk takes no more; the sender is told 0xA700 and sends again later
      ├─ InstanceRefusedError      the sender's object cannot be kept; carries the status that says so to it
      ├─ StartError                the gateway cannot start; a person has to change a setting or stop another program
      ├─ LedgerSilentError         the ledger was looked at, and did not answer; whoever looked, looks again later
      ├─ StudyNotHeldError         a person asked to release a study that is neither held nor without a match
      ├─ RequestError              a person asked to process studies again, and not clearly, or what is not there
      └─ TriggerError              a flow run was not created
           ├─ TriggerUnavailableError   Prefect does not answer, or lets nobody in; all runs are kept, tried again
           │    └─ FlowUnavailableError     it answers, and cannot create a run of this flow; the same for its runs
           │         └─ NotDeployedError        … because it has no deployment of it
           └─ TriggerRefusedError       Prefect will not have this run; the study is held, with the reason

Every message is one line, and names no patient.
"""

from __future__ import annotations


class GatewayError(Exception):
    """Something went wrong between a sender and a flow run."""


class SpoolFullError(GatewayError):
    """The spool's disk cannot take the instance. Nothing of it was kept; the sender may send it again."""


class InstanceRefusedError(GatewayError):
    """The sender's object cannot be kept as it is. ``status`` is the DIMSE status to answer (PS3.4 B.2.3)."""

    def __init__(self, reason: str, *, status: int) -> None:
        super().__init__(reason)
        self.status = status


class StartError(GatewayError):
    """The gateway cannot start. The message says what to change."""


class LedgerSilentError(GatewayError):
    """The ledger does not answer a question about all studies, or not in time."""


class StudyNotHeldError(GatewayError):
    """Only a study that is held, or matched nothing, can be released."""


class RequestError(GatewayError):
    """Studies cannot be processed again as a person asked for it. The message says what to ask instead."""


class TriggerError(GatewayError):
    """A flow run was not created."""


class TriggerUnavailableError(TriggerError):
    """Prefect does not answer, or does not let us in. The same again will work, later."""


class FlowUnavailableError(TriggerUnavailableError):
    """Prefect answers, and does not manage to create a run of this flow. Other flows may fare better."""


class NotDeployedError(FlowUnavailableError):
    """Prefect has no deployment of this flow: not yet, or not any more."""


class TriggerRefusedError(TriggerError):
    """Prefect will not create this run. The same again fails the same way."""
