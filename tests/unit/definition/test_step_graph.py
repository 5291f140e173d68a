from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flows_engine.definition.step_graph import RESULT, STUDY, Step, StepGraph, chain, step_graph


def step(title: str, *, reads: str, writes: str) -> Step:
    """Return a step; ``reads`` and ``writes`` are names with spaces between them."""
    return Step(
        title=title,
        reads={name: f"/in/{name}" for name in reads.split()},
        writes={name: f"/out/{name}" for name in writes.split()},
    )


FOLDS = [step(f"fold {n}", reads="src", writes=f"seg{n}") for n in range(5)]
MERGE = step("merge", reads="seg0 seg1 seg2 seg3 seg4 src", writes="dst")


def test_five_folds_and_a_merge() -> None:
    graph = step_graph([*FOLDS, MERGE])
    assert graph.order == (0, 1, 2, 3, 4, 5)
    assert graph.needs(5) == {0, 1, 2, 3, 4}
    assert [graph.needs(fold) for fold in range(5)] == [frozenset()] * 5
    assert graph.has_branches
    assert graph.result == 5


def test_the_order_is_that_of_the_names_not_that_of_the_list() -> None:
    graph = step_graph([MERGE, *FOLDS])
    assert graph.order == (1, 2, 3, 4, 5, 0)
    assert graph.result == 0


def test_steps_in_a_row_have_no_branches() -> None:
    graph = step_graph(chain(["a", "b", "c"], places=[("/input", "/output")] * 3))
    assert graph.order == (0, 1, 2)
    assert not graph.has_branches
    assert [dict(one.reads) for one in graph.steps] == [{STUDY: "/input"}, {"model-1": "/input"}, {"model-2": "/input"}]
    assert [dict(one.writes) for one in graph.steps][-1] == {RESULT: "/output"}
    assert not step_graph(chain(["a"], places=[("/input", "/output")])).has_branches


@pytest.mark.parametrize(
    ("steps", "reason"),
    [
        (
            [
                step("a", reads="src", writes="x"),
                step("b", reads="src", writes="x"),
                step("c", reads="x", writes="dst"),
            ],
            "x is written by a and by b; give each a name of its own",
        ),
        ([step("a", reads="src", writes="src dst")], "a writes src, which is the received study; give it another name"),
        (
            [step("a", reads="src", writes="seg0"), step("b", reads="seg_0", writes="dst")],
            "b reads seg_0, which no model writes; did you mean seg0?",
        ),
        ([step("a", reads="nothing like it", writes="dst")], "a reads nothing, which no model writes"),
        (
            [step("a", reads="src", writes="x")],
            "none of them writes dst, which is what is sent; name it in the output_mounts of one",
        ),
        ([step("a", reads="dst", writes="dst")], "wait for each other: a → a; one of them has to read something else"),
        (
            [
                step("a", reads="src z", writes="x"),
                step("b", reads="x", writes="y"),
                step("c", reads="y", writes="z dst"),
            ],
            "wait for each other",
        ),
    ],
    ids=["two writers", "the study", "misspelt", "never written", "no result", "itself", "cycle"],
)
def test_what_cannot_be_run_is_refused_with_its_names(steps: list[Step], reason: str) -> None:
    with pytest.raises(ValueError, match=r".") as caught:
        step_graph(steps)
    assert str(caught.value).startswith(reason)


def test_a_cycle_is_told_in_the_order_in_which_they_wait() -> None:
    steps = [
        step("a", reads="src z", writes="x"),
        step("b", reads="x", writes="y"),
        step("c", reads="y", writes="z"),
        step("d", reads="z", writes="dst"),
    ]
    with pytest.raises(ValueError, match="wait for each other") as caught:
        step_graph(steps)
    around = str(caught.value).removeprefix("wait for each other: ").partition(";")[0].split(" → ")
    assert around[0] == around[-1]
    reads = {one.title: one.reads for one in steps}
    writes = {one.title: one.writes for one in steps}
    for waits, needed in pairwise(around):
        assert set(reads[waits]) & set(writes[needed])


@st.composite
def graphs(draw: st.DrawFn) -> StepGraph:
    """Steps of which each reads the study, or what any before it wrote, in a list of any order."""
    count = draw(st.integers(1, 8))
    steps = []
    for number in range(count):
        names = [STUDY, *(f"n{other}" for other in range(number))]
        reads = draw(st.lists(st.sampled_from(names), min_size=1, unique=True))
        written = f"n{number}" + (" dst" if number == count - 1 else "")
        steps.append(step(str(number), reads=" ".join(reads), writes=written))
    return step_graph(draw(st.permutations(steps)))


@given(graphs())
def test_every_step_is_behind_those_that_it_needs(graph: StepGraph) -> None:
    assert sorted(graph.order) == list(range(len(graph.steps)))
    for place, number in enumerate(graph.order):
        assert graph.needs(number) <= set(graph.order[:place])


@given(graphs())
def test_without_branches_there_is_one_order_only(graph: StepGraph) -> None:
    if graph.has_branches:
        return
    for before, number in pairwise(graph.order):
        assert before in graph.needs(number)
