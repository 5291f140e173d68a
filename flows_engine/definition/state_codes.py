"""The states of a run as numbers, for scripts and for whoever asks how far a study is.

Prefect's states have a type, of which there are nine, and a name, which anybody may choose: ``Late`` and
``AwaitingRetry`` are names that Prefect gives to the type SCHEDULED, ``Finished`` and ``Sending`` are ours for RUNNING.
"""

from __future__ import annotations

from enum import IntEnum
from typing import Final, Literal

RunningState = Literal["Finished", "Sending"]


class StateCode(IntEnum):
    """How far a run is. From 400 on it is over, and has not sent everything."""

    WAITING = 0
    """For a worker, or for a person who paused it."""
    RUNNING = 1
    """Models run. Also while a run is being cancelled: until that is done, its containers may be there."""
    FINISHED = 2
    """Models are done, sending has not begun."""
    SENDING = 3
    COMPLETED = 4
    FAILED = 400
    CANCELLED = 410
    """A person has ended it, or it was moved to another priority as another run; its message says which."""


TYPES_OF_CODE: Final[dict[StateCode, tuple[str, ...]]] = {
    StateCode.WAITING: ("SCHEDULED", "PENDING", "PAUSED"),
    StateCode.RUNNING: ("RUNNING", "CANCELLING"),
    StateCode.FINISHED: ("RUNNING",),
    StateCode.SENDING: ("RUNNING",),
    StateCode.COMPLETED: ("COMPLETED",),
    StateCode.FAILED: ("FAILED", "CRASHED"),
    StateCode.CANCELLED: ("CANCELLED",),
}
"""The types of Prefect's states that stand behind a code."""

CODE_OF_NAME: Final[dict[RunningState, StateCode]] = {"Finished": StateCode.FINISHED, "Sending": StateCode.SENDING}
"""The names that tell apart what is of the type RUNNING."""

NOT_OVER: Final = (StateCode.WAITING, StateCode.RUNNING, StateCode.FINISHED, StateCode.SENDING)


def state_code(*, type_: str, name: str) -> StateCode:
    """Return the code of a state of Prefect, by its type (in capitals) and its name.

    Raises ``ValueError`` for a type that Prefect 3 does not have.
    """
    if type_ == "RUNNING":
        for running, code in CODE_OF_NAME.items():
            if name == running:
                return code
    for code, types in TYPES_OF_CODE.items():
        if type_ in types:
            return code
    raise ValueError(f"Prefect has no type of states {type_!r}")
