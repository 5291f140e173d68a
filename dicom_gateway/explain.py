"""A match report in sentences. Pure; it has no value of a patient to tell."""

from __future__ import annotations

from typing import Final

from flows_engine.handoff.matching import ConditionFinding, FlowFinding, MatchReport, TriggerFinding

_MOST_IN_SUMMARY: Final = 3


def explain(report: MatchReport) -> str:
    """Return one line a flow, and one line for each reason why it did not fire."""
    return "\n".join(line for finding in report.flows for line in _flow(finding, report.instance_count))


def summary(report: MatchReport) -> str:
    """Return the decision in one line."""
    if report.undecided:
        return "; ".join(f"{finding.flow}: {finding.problem}" for finding in report.undecided)
    if report.matched:
        return f"matched {', '.join(report.matched)}"
    if not report.flows:
        return "no flow is defined"
    reasons = [f"{flow.flow}: {first_reason(flow, report.instance_count)}" for flow in report.flows[:_MOST_IN_SUMMARY]]
    if len(report.flows) > _MOST_IN_SUMMARY:
        reasons.append(f"and {len(report.flows) - _MOST_IN_SUMMARY} more")
    return f"none of {len(report.flows)} flows matches: {'; '.join(reasons)}"


def first_reason(finding: FlowFinding, instance_count: int) -> str:
    """Return, in one line, why a flow did not fire; the first reason, if there are several."""
    if finding.verdict == "on-request":
        return "runs on request alone"
    return finding.problem or _reasons(finding, instance_count)[0]


def _flow(finding: FlowFinding, instance_count: int) -> list[str]:
    match finding.verdict:
        case "matched":
            return [f"{finding.flow}: matches"]
        case "on-request":
            return [f"{finding.flow}: has no triggers, so it runs on request alone"]
        case "undecided":
            return [f"{finding.flow}: undecided", f"  {finding.problem}"]
        case _:
            return [f"{finding.flow}: does not match", *(f"  {line}" for line in _reasons(finding, instance_count))]


def _reasons(finding: FlowFinding, instance_count: int) -> list[str]:
    lines: list[str] = []
    for number, trigger in enumerate(finding.triggers, start=1):
        if not trigger.found:
            prefix = f"trigger {number}: " if len(finding.triggers) > 1 else ""
            lines += [prefix + line for line in _trigger(trigger, instance_count)]
    return lines


def _trigger(trigger: TriggerFinding, instance_count: int) -> list[str]:
    if trigger.holding:
        return [f"{trigger.holding} of {trigger.min_instances} instances that it needs meet all of its conditions"]
    failed = [condition for condition in trigger.conditions if not condition.holding]
    if not failed:
        return [f"each condition holds somewhere, but never all of them in the same one of {instance_count} instances"]
    return [_condition(condition, instance_count) for condition in failed]


def _condition(condition: ConditionFinding, instance_count: int) -> str:
    patterns = " and ".join(repr(pattern) for pattern in condition.patterns)
    if condition.of_study:
        return f"{condition.tag}: that of the study does not match {patterns}"
    if not condition.having:
        return f"{condition.tag}: none of {instance_count} instances has this tag, so none matches {patterns}"
    return f"{condition.tag}: none of {instance_count} instances matches {patterns}"
