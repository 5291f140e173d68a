"""What a model says of its result in ``result.json``, at the top of its output folder.

It is a stranger's text: bounded, without the patient as far as that is known, and obeyed only where the flow says so.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

from pydantic import BaseModel, ConfigDict

from flows_engine.definition.schema import FlowDefinition
from flows_engine.errors import UnexpectedOutputError, WorkspaceError
from flows_engine.log_lines import on_one_line
from flows_engine.output_files import RESULT_FILE, open_regular

SENDER: Final = "sender"
"""How a model names those who sent the study, among the destinations."""

_LARGEST_BYTES: Final = 64 * 1024
_DEEPEST: Final = 16
_LONGEST_REASON: Final = 200
_MOST_NAMES: Final = 100
_LONGEST_NAME: Final = 40


class UnusableResultError(UnexpectedOutputError):
    """A ``result.json`` that cannot be read, or says what it cannot mean."""


class Decision(BaseModel):
    """What the last model decides, as far as its flow lets it. Names nobody but the flow's own destinations."""

    model_config = ConfigDict(frozen=True)

    skip_reason: str | None = None
    """Why nothing is sent; None where it is."""
    destinations: tuple[str, ...] | None = None
    """The AE titles, and ``sender``, of those that get it; None for all that the flow has."""
    passed_over: tuple[str, ...] = ()
    """What the model asked for and the flow does not let it decide."""


def read_result(folder: Path) -> dict[str, Any]:
    """Return what the ``result.json`` in ``folder`` holds; nothing where there is none. It may name the patient.

    Raises ``UnusableResultError`` for what is no JSON object, is larger than 64 KiB, or nested deeper than 16.
    """
    path = folder / RESULT_FILE
    if not path.is_symlink() and not path.exists():
        return {}
    try:
        with open_regular(path) as file:
            content = file.read(_LARGEST_BYTES + 1)
    except WorkspaceError as error:
        raise UnusableResultError(f"{RESULT_FILE} cannot be read: {error}") from error
    if len(content) > _LARGEST_BYTES:
        raise UnusableResultError(f"{RESULT_FILE} is larger than {_LARGEST_BYTES // 1024} KiB")
    try:
        said = json.loads(content)
    except (ValueError, RecursionError):
        raise UnusableResultError(f"{RESULT_FILE} is no JSON") from None
    if not isinstance(said, dict):
        raise UnusableResultError(f"{RESULT_FILE} is no JSON object")
    found: dict[str, Any] = _each_text(said, _whole_characters, depth=0)
    return found


def shown(said: dict[str, Any], *, redact: Callable[[str], str]) -> str:
    """Return what a model said as JSON text without the patient; empty where it said nothing. Pure."""
    return json.dumps(_each_text(said, redact, depth=0), ensure_ascii=False, indent=2) if said else ""


def _whole_characters(text: str) -> str:
    # JSON can name halves of a character, which no UTF-8 can hold.
    return text.encode("utf-8", "replace").decode()


def _each_text(value: Any, change: Callable[[str], str], *, depth: int) -> Any:  # noqa: ANN401 - whatever JSON holds
    if depth > _DEEPEST:
        raise UnusableResultError(f"{RESULT_FILE} is nested deeper than {_DEEPEST}")
    if isinstance(value, str):
        return change(value)
    if isinstance(value, list):
        return [_each_text(item, change, depth=depth + 1) for item in value]
    if isinstance(value, dict):
        return {change(key): _each_text(item, change, depth=depth + 1) for key, item in value.items()}
    if value is None or isinstance(value, bool):
        return value
    # A number may be a patient's id as well.
    changed = change(str(value))
    return value if changed == str(value) else changed


def decision(definition: FlowDefinition, said: dict[str, Any], *, redact: Callable[[str], str]) -> Decision:
    """Return what the last model decides by what it ``said``. Pure.

    Raises ``UnusableResultError`` where it decides on what the flow does not have, or not as it can be understood.
    """
    allowed = definition.model_decides
    passed_over = tuple(key for key in ("skip_send", "destinations") if key in said and key not in allowed)
    if "skip_send" in said and "skip_send" in allowed:
        if not isinstance(said["skip_send"], bool):
            raise UnusableResultError(f"{RESULT_FILE}: skip_send is neither true nor false")
        if said["skip_send"]:
            reason = redact(on_one_line(str(said.get("reason") or "it gave no reason")))[:_LONGEST_REASON]
            return Decision(skip_reason=reason, passed_over=passed_over)
    if "destinations" not in said or "destinations" not in allowed:
        return Decision(passed_over=passed_over)
    names = _names(said["destinations"])
    known = {node.ae_title for node in definition.destinations}
    if definition.return_to_sender_on_port:
        known.add(SENDER)
    if strangers := names - known:
        raise UnusableResultError(
            f"{RESULT_FILE} names {len(strangers)} destinations that the flow does not have; it has"
            f" {', '.join(sorted(known)) or 'none'}"
        )
    return Decision(destinations=tuple(sorted(names)), passed_over=passed_over)


def _names(value: object) -> frozenset[str]:
    if (
        not isinstance(value, list)
        or not 1 <= len(value) <= _MOST_NAMES
        or not all(isinstance(name, str) and len(name) <= _LONGEST_NAME for name in value)
    ):
        raise UnusableResultError(f"{RESULT_FILE}: destinations is no list of AE titles; skip_send sends nothing")
    return frozenset(value)
