"""Which model of a flow reads what which other one writes. Pure."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from graphlib import CycleError, TopologicalSorter
from itertools import pairwise
from typing import Final

STUDY: Final = "src"
"""The name under which a model reads the received study."""
RESULT: Final = "dst"
"""The name under which a model writes what is sent."""


@dataclass(frozen=True, kw_only=True)
class Step:
    """One model: the names that it reads and writes, each with the folder of its container that stands for it."""

    title: str
    """What people call it, for messages."""
    reads: Mapping[str, str]
    writes: Mapping[str, str]


@dataclass(frozen=True, kw_only=True)
class StepGraph:
    """Steps that can be run. They are numbered from 0, as the models of their flow."""

    steps: tuple[Step, ...]
    writers: Mapping[str, int]
    """Which step writes a name."""
    order: tuple[int, ...]
    """All steps, each behind those that it needs."""

    def needs(self, step: int) -> frozenset[int]:
        """Return the steps that have to be over before ``step`` begins."""
        return _needs(self.steps[step], self.writers)

    @property
    def result(self) -> int:
        """The step that writes what is sent."""
        return self.writers[RESULT]

    @property
    def has_branches(self) -> bool:
        """Whether two steps may be run at the same time: not every step needs the one before it."""
        return any(before not in self.needs(step) for before, step in pairwise(self.order))


def chain(titles: Sequence[str], *, places: Sequence[tuple[str, str]]) -> tuple[Step, ...]:
    """Return steps in a row: the first reads the study, each other what the one before it wrote, the last the result.

    ``places`` are the folders from which, and to which, each reads and writes.
    """
    names = [STUDY, *(f"model-{number}" for number in range(1, len(titles))), RESULT]
    return tuple(
        Step(title=title, reads={names[number]: source}, writes={names[number + 1]: target})
        for number, (title, (source, target)) in enumerate(zip(titles, places, strict=True))
    )


def step_graph(steps: Sequence[Step]) -> StepGraph:
    """Return the graph of ``steps``. Raises ``ValueError`` where they cannot be run; the message names them."""
    writers = _writers(steps)
    for step in steps:
        for name in step.reads:
            if name != STUDY and name not in writers:
                raise ValueError(f"{step.title} reads {name}, which no model writes{_suggestion(name, writers)}")
    needs = {number: _needs(step, writers) for number, step in enumerate(steps)}
    try:
        order = _in_order(needs)
    except CycleError as error:
        around = " → ".join(steps[number].title for number in reversed(error.args[1]))
        raise ValueError(f"wait for each other: {around}; one of them has to read something else") from None
    if RESULT not in writers:
        raise ValueError(f"none of them writes {RESULT}, which is what is sent; name it in the output_mounts of one")
    return StepGraph(steps=tuple(steps), writers=writers, order=order)


def _writers(steps: Sequence[Step]) -> dict[str, int]:
    writers: dict[str, int] = {}
    for number, step in enumerate(steps):
        for name in step.writes:
            if name == STUDY:
                raise ValueError(f"{step.title} writes {STUDY}, which is the received study; give it another name")
            if name in writers:
                other = steps[writers[name]].title
                raise ValueError(f"{name} is written by {other} and by {step.title}; give each a name of its own")
            writers[name] = number
    return writers


def _needs(step: Step, writers: Mapping[str, int]) -> frozenset[int]:
    return frozenset(writers[name] for name in step.reads if name != STUDY)


def _in_order(needs: Mapping[int, frozenset[int]]) -> tuple[int, ...]:
    """Return the steps, each behind those it needs, and otherwise as they were written."""
    sorter = TopologicalSorter(needs)
    sorter.prepare()
    order: list[int] = []
    ready: list[int] = []
    while sorter.is_active():
        ready = sorted([*ready, *sorter.get_ready()])
        step = ready.pop(0)
        order.append(step)
        sorter.done(step)
    return tuple(order)


def _suggestion(name: str, writers: Mapping[str, int]) -> str:
    near = difflib.get_close_matches(name, [STUDY, *writers], n=1)
    return f"; did you mean {near[0]}?" if near else ""
