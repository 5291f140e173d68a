"""Who gets which GPU, as a function of values."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

import pytest

from flows_engine.definition.schema import Model
from flows_engine.errors import FinalError, GpuMissingError
from flows_engine.gpu_choice import WHOLE, Amount, Need, Option, choose, need_of

TOTAL = {"0": 80_000, "1": 80_000}


def model(**values: Any) -> Model:
    return Model.model_validate({"docker_kwargs": {"image": "a"}, "gpu": True, **values})


def whole(count: int = 1, *, gpus: Sequence[str] = ("0", "1")) -> Need:
    return Need(count=count, options=tuple(Option(gpu=gpu) for gpu in gpus))


def part(mib: int, count: int = 1) -> Need:
    return Need(count=count, options=tuple(Option(gpu=gpu, amount=mib, total_mib=80_000) for gpu in TOTAL))


def test_a_model_without_memory_needs_whole_gpus_whatever_is_known_of_them() -> None:
    assert need_of(model(gpu=2), gpus=["0", "1", "2"], total_mib=TOTAL) == whole(2, gpus=("0", "1", "2"))
    assert need_of(model(gpu="a100"), gpus=["0", "1"], total_mib={}) == whole()


def test_a_model_with_memory_needs_that_much_where_the_total_is_known_and_all_elsewhere() -> None:
    need = need_of(model(gpu_memory=8000), gpus=["0", "x"], total_mib={"0": 80_000})
    assert need.options == (Option(gpu="0", amount=8000, total_mib=80_000), Option(gpu="x"))


def test_a_gpu_that_is_too_small_is_no_option() -> None:
    need = need_of(model(gpu_memory=20_000), gpus=["small", "1"], total_mib={"small": 12_000, "1": 80_000})
    assert [option.gpu for option in need.options] == ["1"]


@pytest.mark.parametrize(
    ("values", "gpus", "said"),
    [
        ({}, [], ("1 GPU", "has none", "set GPUS")),
        ({"gpu": 3}, ["0", "1"], ("wants 3 GPUs", "has 2", "GPUS: 0 1", "ask for fewer")),
        ({"gpu_memory": 90_000}, ["0", "1"], ("90000 MiB of 1 GPU", "largest GPU has 80000", "gpu_memory")),
        ({"gpu": 2, "gpu_memory": 20_000}, ["0", "small"], ("20000 MiB of 2 GPUs", "1 of its GPUs has as much")),
    ],
)
def test_what_a_host_can_never_give_is_refused_for_good(
    values: dict[str, Any], gpus: list[str], said: tuple[str, ...]
) -> None:
    with pytest.raises(GpuMissingError) as caught:
        need_of(model(**values), gpus=gpus, total_mib={**TOTAL, "small": 12_000})
    assert all(part in str(caught.value) for part in said), str(caught.value)
    assert isinstance(caught.value, FinalError)


def test_a_whole_gpu_is_one_that_nobody_uses() -> None:
    assert choose(whole(), held={"0": [8000]}) == {"1": WHOLE}
    assert choose(whole(2), held={"0": [8000]}) is None
    assert choose(whole(2), held={}) == {"0": WHOLE, "1": WHOLE}


def test_sharers_fill_a_gpu_before_they_begin_another_and_never_more_than_it_has() -> None:
    held: dict[str, list[Amount]] = {}
    for gpu in ("0", "0", "1", "1"):
        assert choose(part(40_000), held=held) == {gpu: 40_000}
        held.setdefault(gpu, []).append(40_000)
    assert choose(part(1), held=held) is None


def test_a_sharer_goes_to_no_gpu_that_is_held_whole() -> None:
    assert choose(part(1), held={"0": [WHOLE]}) == {"1": 1}
    assert choose(part(1, count=2), held={"0": [WHOLE]}) is None


def test_a_gpu_of_unknown_memory_is_the_last_that_a_sharer_takes() -> None:
    need = Need(count=1, options=(Option(gpu="x"), Option(gpu="0", amount=50_000, total_mib=80_000)))
    assert choose(need, held={}) == {"0": 50_000}
    assert choose(need, held={"0": [50_000]}) == {"x": WHOLE}


def test_one_who_wants_a_whole_gpu_has_the_least_used_one_kept() -> None:
    held = {"0": [40_000], "1": [8000]}
    assert choose(part(8000), held=held, earlier=[whole()]) == {"0": 8000}
    assert choose(part(8000), held=held, earlier=[whole(2)]) is None


def test_what_an_earlier_one_can_have_now_is_his_and_the_rest_is_free() -> None:
    assert choose(whole(), held={}, earlier=[whole()]) == {"1": WHOLE}
    assert choose(whole(), held={"1": [WHOLE]}, earlier=[whole()]) is None
    assert choose(whole(), held={}, earlier=[whole(gpus=("0",)), whole(gpus=("0",))]) == {"1": WHOLE}


def _held(holders: Sequence[dict[str, Amount]]) -> dict[str, list[Amount]]:
    return {gpu: [holder[gpu] for holder in holders if gpu in holder] for gpu in TOTAL}


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize("count", [1, 2])
def test_one_who_wants_whole_gpus_gets_them_though_sharers_come_without_end(seed: int, count: int) -> None:
    dice, patient = random.Random(seed), whole(count)
    holders: list[dict[str, Amount]] = [{"0": 8000}, {"1": 8000}]
    for _ in range(500):
        if choose(patient, held=_held(holders)) is not None:
            return
        while (got := choose(part(dice.choice([8000, 16_000])), held=_held(holders), earlier=[patient])) is not None:
            holders.append(got)
        holders.pop(dice.randrange(len(holders)))
    pytest.fail("it waits for ever")
