"""A study x the flow definitions -> which flows fire, and why the others do not. Pure.

Each distinct value is tested once, whatever the number of instances, and what holds for which instance is a row of
bytes in one integer: 10,000 instances and 200 flows are decided in well under a second.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import reduce
from operator import and_, or_
from typing import Final, Literal

from flows_engine.definition.errors import PatternTimeoutError
from flows_engine.definition.schema import FlowDefinition
from flows_engine.definition.trigger import Condition, Pattern, Trigger
from flows_engine.definition.trigger_key import CALLED_AE_TITLE, ORIGIN_KEYS, SENDER_AE_TITLE, SENDER_HOST, is_deep
from flows_engine.handoff.study_store import StudyRecord, TagColumn

Verdict = Literal["matched", "not-matched", "on-request", "undecided", "asks-files"]

_NO: Final = 0
_YES: Final = 1


@dataclass(frozen=True, kw_only=True)
class ConditionFinding:
    """How many instances one condition holds for. ``tag`` and ``patterns`` are as their author wrote them."""

    tag: str
    patterns: tuple[str, ...]
    holding: int
    having: int
    """How many instances have the tag at all."""

    @property
    def of_study(self) -> bool:
        """Whether it is about where the study came from, so that it holds for all of its instances or for none."""
        return self.tag.strip() in ORIGIN_KEYS


@dataclass(frozen=True, kw_only=True)
class TriggerFinding:
    """How many instances all conditions of one trigger hold for, and how many it asks for."""

    conditions: tuple[ConditionFinding, ...]
    """Those on which something could be found."""
    holding: int
    min_instances: int = 1
    asks_files: bool = False
    """Whether a condition is about what the fingerprint does not hold; it is left out of what is counted then."""

    @property
    def found(self) -> bool:
        """Whether the study has enough instances for which all of it holds."""
        return self.holding >= self.min_instances


@dataclass(frozen=True, kw_only=True)
class FlowFinding:
    """What was found for one flow. ``problem`` says why a flow is undecided, and is empty otherwise.

    The verdict is ``asks-files`` where the files of the study have to be read, and all else holds.
    """

    flow: str
    verdict: Verdict
    triggers: tuple[TriggerFinding, ...] = ()
    problem: str = ""

    @property
    def asks_files(self) -> bool:
        """Whether only the files of the study can tell."""
        return self.verdict == "asks-files"


@dataclass(frozen=True, kw_only=True)
class MatchReport:
    """The decision on one study, with its reasons. It holds no value of the study."""

    instance_count: int
    flows: tuple[FlowFinding, ...]

    @property
    def matched(self) -> tuple[str, ...]:
        """Return the names of the flows that fire."""
        return tuple(finding.flow for finding in self.flows if finding.verdict == "matched")

    @property
    def undecided(self) -> tuple[FlowFinding, ...]:
        """Return the flows on which no decision could be reached."""
        return tuple(finding for finding in self.flows if finding.verdict == "undecided")


def match(study: StudyRecord, definitions: Iterable[FlowDefinition]) -> MatchReport:
    """Return which of ``definitions`` fire on the study, as its record has it.

    A flow fires if each of its triggers is found, and a trigger is found if some single instance meets all its
    conditions; if it has ``min_instances``, if so many instances do. A condition is met if any value of the tag matches
    each plain pattern and no value matches any ``~`` pattern; an instance that lacks the tag meets ``~`` patterns only.
    Where the study came from is the same for each of its instances. A flow without triggers runs on request alone.

    Values of sequences and of private creators are known only where the fingerprint has a column for their key, which
    that of a record has not; see ``study_match``.
    """
    evidence = _Evidence(study)
    findings = tuple(_flow(evidence, definition) for definition in definitions)
    return MatchReport(instance_count=evidence.instance_count, flows=findings)


def matched_instances(study: StudyRecord, definition: FlowDefinition) -> tuple[bool, ...]:
    """Tell of each instance whether it meets all conditions of some trigger of ``definition``, by itself.

    The record must have a column for each key of a trigger that names what lies deep. Raises ``PatternTimeoutError``.
    """
    evidence = _Evidence(study)
    try:
        rows = [_together(evidence, trigger) for trigger in definition.triggers]
    except _TooSlowError as error:
        raise PatternTimeoutError(str(error)) from None
    some = reduce(or_, rows, 0)
    return tuple(bool(row) for row in some.to_bytes(evidence.instance_count, "little"))


def _together(evidence: _Evidence, trigger: Trigger) -> int:
    return reduce(and_, map(evidence.rows, trigger.conditions), evidence.every_instance)


def _flow(evidence: _Evidence, definition: FlowDefinition) -> FlowFinding:
    if not definition.triggers:
        return FlowFinding(flow=definition.name, verdict="on-request")
    triggers: list[TriggerFinding] = []
    for trigger in definition.triggers:
        try:
            triggers.append(_trigger(evidence, trigger))
        except _TooSlowError as error:
            return FlowFinding(flow=definition.name, verdict="undecided", triggers=tuple(triggers), problem=str(error))
    verdict: Verdict = "matched" if all(trigger.found for trigger in triggers) else "not-matched"
    if verdict == "matched" and any(trigger.asks_files for trigger in triggers):
        verdict = "asks-files"
    return FlowFinding(flow=definition.name, verdict=verdict, triggers=tuple(triggers))


def _trigger(evidence: _Evidence, trigger: Trigger) -> TriggerFinding:
    together = evidence.every_instance
    findings: list[ConditionFinding] = []
    known = [condition for condition in trigger.conditions if evidence.knows(condition.tag)]
    for condition in known:
        rows = evidence.rows(condition)
        together &= rows
        findings.append(
            ConditionFinding(
                tag=condition.written,
                patterns=tuple(pattern.written for pattern in condition.patterns),
                holding=rows.bit_count(),
                having=evidence.having(condition.tag),
            )
        )
    return TriggerFinding(
        conditions=tuple(findings),
        holding=together.bit_count(),
        min_instances=trigger.min_instances,
        asks_files=len(known) < len(trigger.conditions),
    )


class _TooSlowError(Exception):
    """A pattern ran into its time limit; the message names the pattern."""


class _Evidence:
    """What holds for which instance: one byte an instance, 1 where it holds, all of them in one integer."""

    def __init__(self, study: StudyRecord) -> None:
        self.instance_count = study.fingerprint.instance_count
        self._columns = {**study.fingerprint.columns, **origin_columns(study)}
        self._rows: dict[tuple[str, str, bool], int] = {}
        self._having: dict[str, int] = {}
        self.every_instance = _packed([_YES] * self.instance_count)

    def knows(self, tag: str) -> bool:
        return tag in self._columns or not is_deep(tag)

    def having(self, tag: str) -> int:
        count = self._having.get(tag)
        if count is None:
            column = self._columns.get(tag)
            count = 0 if column is None else self.instance_count - column.index.count(-1)
            self._having[tag] = count
        return count

    def rows(self, condition: Condition) -> int:
        rows = self.every_instance
        for pattern in condition.patterns:
            rows &= self._rows_of(condition, pattern)
        return rows

    def _rows_of(self, condition: Condition, pattern: Pattern) -> int:
        key = (condition.tag, pattern.text, pattern.negated)
        rows = self._rows.get(key)
        if rows is None:
            rows = self._rows[key] = self._tested(condition, pattern)
        return rows

    def _tested(self, condition: Condition, pattern: Pattern) -> int:
        column = self._columns.get(condition.tag)
        if column is None:
            return self.every_instance if pattern.negated else 0
        holds: list[int] = []
        for values in column.values:
            try:
                found = any(pattern.search(value) for value in values)
            except PatternTimeoutError:
                slow = f"{condition.written}: the pattern {pattern.text!r} did not come to an end in time; simplify it"
                raise _TooSlowError(slow) from None
            holds.append(_YES if found != pattern.negated else _NO)
        # The last entry answers for index -1, the instances that lack the tag.
        holds.append(_YES if pattern.negated else _NO)
        return _packed([holds[place] for place in column.index])


def origin_columns(study: StudyRecord) -> dict[str, TagColumn]:
    """Return where a study came from as columns: the same for each of its instances."""
    values = {
        SENDER_AE_TITLE: study.sender.ae_title,
        SENDER_HOST: study.sender.host,
        CALLED_AE_TITLE: study.called_ae_title,
    }
    index = (0,) * study.fingerprint.instance_count
    return {key: TagColumn(values=((value,),), index=index) for key, value in values.items()}


def _packed(rows: list[int]) -> int:
    return int.from_bytes(bytes(rows), "little")
