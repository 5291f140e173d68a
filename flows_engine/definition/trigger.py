"""A trigger: the conditions that must hold together in a single instance, on its tags and on who sent it."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from functools import lru_cache
from typing import Final

import regex
from pydantic import BaseModel, ConfigDict, GetJsonSchemaHandler, ValidationError, model_serializer, model_validator
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema, InitErrorDetails, PydanticCustomError

from flows_engine.definition.errors import PatternTimeoutError
from flows_engine.definition.leniency import as_list, as_text
from flows_engine.definition.trigger_key import parse_key
from flows_engine.definition.wording import quoted

_SECONDS_PER_VALUE: Final = 1.0
_LONGEST_PATTERN: Final = 1000
# A counted repeat is written out when a pattern is compiled: `((a{1000}){1000}){1000}` takes all memory there is.
_COUNT: Final = re.compile(r"\{\s*([0-9]+)")
_MOST_WRITTEN_OUT: Final = 1_000_000
_MOST_WRONG_CONDITIONS: Final = 10
MIN_INSTANCES: Final = "min_instances"
"""The one key of a trigger that is no condition. No DICOM keyword begins with a small letter."""
_MOST_INSTANCES: Final = 1_000_000
_WHOLE_NUMBER: Final = re.compile("[0-9]{1,18}")


@lru_cache(maxsize=1024)
def _compiled(text: str) -> regex.Pattern[str]:
    return regex.compile(text)


class Pattern(BaseModel):
    """A regular expression that is searched anywhere in a value, or, ``negated``, must be found nowhere."""

    model_config = ConfigDict(frozen=True)

    text: str
    negated: bool = False

    @property
    def written(self) -> str:
        """The pattern as its author wrote it."""
        return f"~{self.text}" if self.negated else self.text

    @classmethod
    def parse(cls, written: str) -> Pattern:
        """Return the pattern that an author wrote. Raises ``ValueError`` with the reason."""
        negated = written.startswith("~")
        text = written.removeprefix("~") if negated else written
        if not text:
            raise ValueError('a pattern is empty; write ".*" for any value')
        if len(text) > _LONGEST_PATTERN:
            raise ValueError(f"a pattern is longer than {_LONGEST_PATTERN} characters; make several of it")
        if math.prod(max(1, int(count)) for count in _COUNT.findall(text)) * len(text) > _MOST_WRITTEN_OUT:
            raise ValueError("the counts in {…} of a pattern multiply to too much; write it more simply")
        try:
            # What regex knows beyond Python's own syntax is refused: an author has Python's manual.
            re.compile(text)
            _compiled(text)
        except (re.error, regex.error) as error:
            raise ValueError(f"{quoted(text)} is not a regular expression: {error}") from None
        except (RecursionError, OverflowError):
            raise ValueError("the parentheses of a pattern are nested too deep; write it more simply") from None
        return cls(text=text, negated=negated)

    def search(self, value: str) -> bool:
        """Say whether the expression, negated or not, is found in ``value``. Raises ``PatternTimeoutError``."""
        try:
            return _compiled(self.text).search(value, timeout=_SECONDS_PER_VALUE) is not None
        except TimeoutError:
            raise PatternTimeoutError(
                f"the pattern {self.text!r} takes too long to match; write it more simply"
            ) from None


class Condition(BaseModel):
    """What must hold for one key of a trigger: ``tag`` as ``parse_key`` has it, ``written`` as its author wrote it."""

    model_config = ConfigDict(frozen=True)

    tag: str
    written: str
    patterns: tuple[Pattern, ...]


class Trigger(BaseModel):
    """Conditions that must all hold in the same instance, for at least ``min_instances`` of them.

    Written, and dumped, as a mapping of key to patterns, in which ``min_instances`` stands beside the keys.
    """

    model_config = ConfigDict(frozen=True)

    conditions: tuple[Condition, ...]
    min_instances: int = 1

    @model_validator(mode="before")
    @classmethod
    def _from_mapping(cls, value: object) -> object:
        if isinstance(value, cls):
            return value
        if not isinstance(value, dict):
            # pydantic turns a ValueError into a finding, and lets a TypeError through.
            raise ValueError("a trigger is a mapping of DICOM tags to patterns, like {Modality: CT}")  # noqa: TRY004
        if isinstance(value.get("conditions"), tuple):
            return value
        if not value.keys() - {MIN_INSTANCES}:
            raise ValueError('the trigger is empty and would fire on everything; say so with {SOPClassUID: ".*"}')
        conditions: dict[str, Condition] = {}
        wrong: list[InitErrorDetails] = []
        min_instances = 1
        for written, patterns in value.items():
            try:
                if written == MIN_INSTANCES:
                    min_instances = _count(patterns)
                    continue
                condition = _condition(str(written), patterns, before=conditions)
            except ValueError as error:
                kind = PydanticCustomError("condition", "{reason}", {"reason": str(error)})
                wrong.append(InitErrorDetails(type=kind, loc=(str(written),), input=patterns))
                if len(wrong) == _MOST_WRONG_CONDITIONS:
                    break
            else:
                conditions[condition.tag] = condition
        if wrong:
            raise ValidationError.from_exception_data(cls.__name__, wrong)
        return {"conditions": tuple(conditions.values()), MIN_INSTANCES: min_instances}

    @model_serializer
    def _to_mapping(self) -> dict[str, list[str] | int]:
        # Left out where it says nothing, so that definitions without it keep their digest.
        counted: dict[str, list[str] | int] = {MIN_INSTANCES: self.min_instances} if self.min_instances > 1 else {}
        return {item.written: [pattern.written for pattern in item.patterns] for item in self.conditions} | counted

    @classmethod
    def __get_pydantic_json_schema__(cls, _schema: CoreSchema, _handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        pattern = {"type": ["string", "number", "boolean"]}
        return {
            "type": "object",
            "title": "Trigger",
            "description": "DICOM tag (keyword, GGGGEEEE, (gggg,eeee) or (gggg,'CREATOR',ee)), with dots between it "
            "and the sequences that it is in, or Sender.AETitle, Sender.Host or Called.AETitle: pattern, or list of "
            "patterns that must all hold. A pattern is a regular expression, searched anywhere in the value; ~ in "
            "front: must not match.",
            "minProperties": 1,
            "properties": {
                MIN_INSTANCES: {
                    "type": "integer",
                    "minimum": 1,
                    "maximum": _MOST_INSTANCES,
                    "default": 1,
                    "description": "In how many instances, at least, all of it must hold.",
                }
            },
            "additionalProperties": {"anyOf": [pattern, {"type": "array", "minItems": 1, "items": pattern}]},
        }


def _count(written: object) -> int:
    text = written.strip() if isinstance(written, str) else str(written) if type(written) is int else ""
    if not _WHOLE_NUMBER.fullmatch(text) or not 1 <= int(text) <= _MOST_INSTANCES:
        raise ValueError(f"is no number of instances from 1 to {_MOST_INSTANCES}")
    return int(text)


def _condition(written: str, patterns: object, *, before: Mapping[str, Condition]) -> Condition:
    tag = parse_key(written)
    if tag in before:
        raise ValueError(f"is the same tag as {before[tag].written}; make one list of their patterns")
    listed = as_list(patterns)
    written_patterns = [as_text(pattern) for pattern in listed] if isinstance(listed, list | tuple) else []
    texts = [text for text in written_patterns if isinstance(text, str)]
    if not texts or len(texts) < len(written_patterns):
        raise ValueError('needs a pattern, or a list of patterns; for any value write ".*"')
    return Condition(tag=tag, written=written, patterns=tuple(Pattern.parse(text) for text in texts))
