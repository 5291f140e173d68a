"""What a model says of its result in ``result.json``, at the top of its output folder.

It is a stranger's text: bounded, without the patient as far as that is known, and obeyed only where the flow says so.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from flows_engine.definition.schema import FlowDefinition, Node
from flows_engine.errors import UnexpectedOutputError, WorkspaceError
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


def read_result(folder: Path, *, redact: Callable[[str], str]) -> str:
    """Return the JSON text of the ``result.json`` in ``folder``, each text in it redacted; empty where there is none.

    Raises ``UnusableResultError`` for what is no JSON object, is larger than 64 KiB, or nested deeper than 16.
    """
    path = folder / RESULT_FILE
    if not path.is_symlink() and not path.exists():
        return ""
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
    return json.dumps(_redacted(said, redact, depth=0), ensure_ascii=False, indent=2)


def _redacted(value: Any, redact: Callable[[str], str], *, depth: int) -> Any:  # noqa: ANN401 - whatever JSON holds
    if depth > _DEEPEST:
        raise UnusableResultError(f"{RESULT_FILE} is nested deeper than {_DEEPEST}")
    if isinstance(value, str):
        return redact(value)
    if isinstance(value, list):
        return [_redacted(item, redact, depth=depth + 1) for item in value]
    if isinstance(value, dict):
        return {redact(key): _redacted(item, redact, depth=depth + 1) for key, item in value.items()}
    # A number may be a patient's id as well.
    return value if value is None or isinstance(value, bool) or redact(str(value)) == str(value) else redact(str(value))


@dataclass(frozen=True, kw_only=True)
class Choice:
    """What becomes of an output: whether it is sent, and which of the flow's destinations get it."""

    skip_reason: str | None = None
    """Why nothing is sent; None where it is."""
    nodes: tuple[Node, ...]
    to_sender: bool
    passed_over: tuple[str, ...] = ()
    """What the model asked for and the flow does not let it decide."""


def choice(definition: FlowDefinition, result: str) -> Choice:
    """Return what becomes of the output of the last model, which said ``result``. Pure.

    Raises ``UnusableResultError`` where it decides on what the flow does not have, or not as it can be understood.
    """
    said: dict[str, Any] = json.loads(result) if result else {}
    allowed = definition.model_decides
    passed_over = tuple(key for key in ("skip_send", "destinations") if key in said and key not in allowed)
    everyone = Choice(nodes=definition.destinations, to_sender=True, passed_over=passed_over)
    if "skip_send" in said and "skip_send" in allowed:
        if not isinstance(said["skip_send"], bool):
            raise UnusableResultError(f"{RESULT_FILE}: skip_send is neither true nor false")
        if said["skip_send"]:
            reason = " ".join(str(said.get("reason") or "it gave no reason").split())[:_LONGEST_REASON]
            return Choice(skip_reason=reason, nodes=(), to_sender=False, passed_over=passed_over)
    if "destinations" not in said or "destinations" not in allowed:
        return everyone
    names = _names(said["destinations"])
    known = {node.ae_title for node in definition.destinations}
    if definition.return_to_sender_on_port:
        known.add(SENDER)
    if strangers := [name for name in names if name not in known]:
        raise UnusableResultError(
            f"{RESULT_FILE} names {len(strangers)} destinations that the flow does not have; it has"
            f" {', '.join(sorted(known)) or 'none'}"
        )
    return Choice(
        nodes=tuple(node for node in definition.destinations if node.ae_title in names),
        to_sender=SENDER in names,
        passed_over=passed_over,
    )


def _names(value: object) -> frozenset[str]:
    if (
        not isinstance(value, list)
        or not 1 <= len(value) <= _MOST_NAMES
        or not all(isinstance(name, str) and len(name) <= _LONGEST_NAME for name in value)
    ):
        raise UnusableResultError(
            f"{RESULT_FILE}: destinations is no list of AE titles; to send nothing, say skip_send"
        )
    return frozenset(value)
