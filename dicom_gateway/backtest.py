"""What a definition would have matched: counts over many studies, and the reasons of those that it does not. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

from flows_engine.handoff.matching import ConditionFinding, FlowFinding, TriggerFinding


class Backtest:
    """Takes in the findings on one study after the other; keeps at most ``most_named`` ids."""

    def __init__(self, *, most_named: int) -> None:
        self._most_named = most_named
        self.matched = 0
        self.matched_ids: list[str] = []
        """The first of those that match."""
        self.ran_before = 0
        """How many of those that match ran under this name before."""
        self.held = 0
        """How many of those that match are held, so that nothing runs on them by itself."""
        self.not_matched = 0
        self.undecided = 0
        self.unreadable = 0
        """How many could not be looked at: their files are gone, or damaged."""
        self._reasons: Counter[str] = Counter()
        self._problems: Counter[str] = Counter()

    def add(self, study_id: str, finding: FlowFinding, *, is_held: bool, ran_before: bool) -> None:
        """Take in what was found on one study."""
        if finding.verdict == "matched":
            self.matched += 1
            self.ran_before += ran_before
            self.held += is_held
            if len(self.matched_ids) < self._most_named:
                self.matched_ids.append(study_id)
        elif finding.verdict == "undecided":
            self.undecided += 1
            self._problems[finding.problem] += 1
        else:
            self.not_matched += 1
            self._reasons.update(set(_reasons(finding)))

    def add_unreadable(self) -> None:
        """Take in that a study could not be looked at."""
        self.unreadable += 1

    @property
    def studies(self) -> int:
        """How many studies were taken in."""
        return self.matched + self.not_matched + self.undecided + self.unreadable

    def reasons(self) -> list[tuple[str, int]]:
        """Return why studies do not match, and for how many of them that is one of the reasons, most frequent first."""
        return self._reasons.most_common()

    def problems(self) -> list[tuple[str, int]]:
        """Return why studies could not be decided on, most frequent first."""
        return self._problems.most_common()


def _reasons(finding: FlowFinding) -> Iterator[str]:
    """Yield the reasons in words that are the same for all studies, however many instances they have."""
    if finding.verdict == "on-request":
        yield "has no triggers, so it runs on request alone"
    for number, trigger in enumerate(finding.triggers, start=1):
        prefix = f"trigger {number}: " if len(finding.triggers) > 1 else ""
        yield from (prefix + reason for reason in _of_trigger(trigger))


def _of_trigger(trigger: TriggerFinding) -> Iterator[str]:
    if trigger.found:
        return
    if trigger.holding:
        yield f"fewer than {trigger.min_instances} instances meet all conditions"
        return
    failed = [condition for condition in trigger.conditions if not condition.holding]
    if not failed:
        yield "each condition holds somewhere, but never all of them in the same instance"
    yield from map(_of_condition, failed)


def _of_condition(condition: ConditionFinding) -> str:
    patterns = " and ".join(repr(pattern) for pattern in condition.patterns)
    if condition.of_study:
        return f"{condition.tag}: that of the study does not match {patterns}"
    if not condition.having:
        return f"{condition.tag}: no instance has this tag"
    return f"{condition.tag}: no instance matches {patterns}"
