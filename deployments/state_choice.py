"""Which states somebody means who asks for runs: by a name, by a code, all that failed, all that are not over. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from difflib import get_close_matches
from typing import Final

from deployments.errors import CommandError
from flows_engine.definition.state_codes import CODE_OF_NAME, NOT_OVER, TYPES_OF_CODE, StateCode

# What Prefect and we call states. A name is matched as it is written here, whatever case somebody types.
_NAMES: Final = (
    *("Scheduled", "Late", "AwaitingRetry", "AwaitingConcurrencySlot", "Pending", "Submitting", "Paused", "Suspended"),
    *("Running", "Retrying", "Finished", "Sending", "Cancelling"),
    *("Completed", "Failed", "TimedOut", "Crashed", "Cancelled"),
)


class UnknownStateError(CommandError):
    """No state is called so. The message names those that are."""


@dataclass(frozen=True, kw_only=True)
class StateChoice:
    """States of one of ``types`` with one of ``names`` (any, where there are none), and with none of ``not_names``."""

    types: tuple[str, ...] = ()
    names: tuple[str, ...] = ()
    not_names: tuple[str, ...] = ()


def state_choice(text: str) -> StateChoice:
    """Return what somebody means who asks for a state by its name or by its code.

    Raises ``UnknownStateError``.
    """
    if text.isdecimal() and int(text) in set(StateCode):
        return _choice_of(StateCode(int(text)))
    for name in _NAMES:
        if name.casefold() == text.casefold():
            return StateChoice(names=(name,))
    close = get_close_matches(text.title(), _NAMES, n=1)
    hint = f"did you mean {close[0]}?" if close else f"there are {', '.join(_NAMES)}"
    codes = ", ".join(str(code.value) for code in StateCode)
    raise UnknownStateError(f"no state is called {text!r}; {hint} (or a code: {codes})")


def failed() -> StateChoice:
    """Return the states of runs that failed."""
    return _choice_of(StateCode.FAILED)


def not_over() -> StateChoice:
    """Return the states of runs that are not over."""
    return StateChoice(types=tuple(dict.fromkeys(type_ for code in NOT_OVER for type_ in TYPES_OF_CODE[code])))


def _choice_of(code: StateCode) -> StateChoice:
    names: dict[StateCode, str] = {code: name for name, code in CODE_OF_NAME.items()}
    if code in names:
        return StateChoice(types=TYPES_OF_CODE[code], names=(names[code],))
    # Finished and Sending are Running to Prefect, and have codes of their own.
    return StateChoice(types=TYPES_OF_CODE[code], not_names=tuple(names.values()) if code == StateCode.RUNNING else ())
