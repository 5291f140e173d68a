"""What a model needs of a host's GPUs, and which it gets beside those who hold some already. Pure.

An amount is a number of MiB, or None for the whole GPU, which is never shared.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

from pydantic import BaseModel, ConfigDict

from flows_engine.definition.schema import Model
from flows_engine.errors import GpuMissingError

Amount = int | None

WHOLE: Final = None
"""The amount that is a whole GPU."""

Held = Mapping[str, Sequence[Amount]]
"""What is held of each GPU, an amount a holder."""


class Option(BaseModel):
    """A GPU that would do, and how much of it: ``amount`` of the ``total_mib`` that it has."""

    model_config = ConfigDict(frozen=True)

    gpu: str
    amount: Amount = WHOLE
    total_mib: int | None = None


class Need(BaseModel):
    """``count`` GPUs, all or none, of the ``options``."""

    model_config = ConfigDict(frozen=True)

    count: int
    options: tuple[Option, ...]

    def __str__(self) -> str:
        """Return it as it stands in a sentence."""
        among = ", ".join(option.gpu for option in self.options)
        return f"the GPU {among}" if len(self.options) == 1 else f"{_gpus(self.count)} of {among}"


def need_of(model: Model, *, gpus: Sequence[str], total_mib: Mapping[str, int]) -> Need:
    """Return what ``model`` needs of the host's ``gpus``, whose memory is ``total_mib`` where it is known.

    Where it is not known, the whole GPU is needed. Raises ``GpuMissingError`` where all of them would not do.
    """
    count, memory_mib = model.gpu_count, model.gpu_memory
    if not gpus:
        raise GpuMissingError(
            f"the model needs {_gpus(count)} and this worker has none: set GPUS to the ids it may use, for example"
            " GPUS='0 1'"
        )
    if count > len(gpus):
        raise GpuMissingError(
            f"the model wants {_gpus(count)} at once (gpu: {count}) and this worker has {len(gpus)} (GPUS:"
            f" {' '.join(gpus)}): add ids to GPUS, or ask for fewer"
        )
    if memory_mib is None:
        return Need(count=count, options=tuple(Option(gpu=gpu) for gpu in gpus))
    large_enough = [gpu for gpu in gpus if total_mib.get(gpu, memory_mib) >= memory_mib]
    if len(large_enough) < count:
        largest = max(total_mib[gpu] for gpu in gpus if gpu in total_mib)
        fitting = f"{len(large_enough)} of its GPUs has as much" if large_enough else f"its largest GPU has {largest}"
        raise GpuMissingError(
            f"the model wants {memory_mib} MiB of {_gpus(count)} (gpu_memory) and this worker does not have them"
            f" ({fitting}): write a smaller gpu_memory, or run the flow where there are larger GPUs"
        )
    return Need(
        count=count,
        options=tuple(
            Option(gpu=gpu, amount=memory_mib, total_mib=total_mib[gpu]) if gpu in total_mib else Option(gpu=gpu)
            for gpu in large_enough
        ),
    )


def choose(need: Need, *, held: Held, earlier: Sequence[Need] = ()) -> dict[str, Amount] | None:
    """Return which GPUs ``need`` gets now, and how much of each; None where it has to wait.

    ``earlier`` are those who have waited longer, the first at the front. What they can have now is theirs. To one who
    cannot have it, the GPUs are kept that are the least held: nothing is added to them, so that what is held of
    them ends, and one who wants a whole GPU is not passed for ever by those who share.
    """
    taken = {gpu: list(amounts) for gpu, amounts in held.items()}
    for other in earlier:
        for gpu, amount in (_fitting(other, taken) or _kept(other, taken)).items():
            taken.setdefault(gpu, []).append(amount)
    return _fitting(need, taken)


def _fitting(need: Need, held: Held) -> dict[str, Amount] | None:
    fitting = [option for option in need.options if _fits(option, held.get(option.gpu, ()))]
    if len(fitting) < need.count:
        return None
    # Sharers go where others share already, so that whole GPUs stay free.
    best = sorted(fitting, key=lambda option: (option.amount is WHOLE, -_measure(held.get(option.gpu, ()))))
    return {option.gpu: option.amount for option in best[: need.count]}


def _kept(need: Need, held: Held) -> dict[str, Amount]:
    least = sorted(need.options, key=lambda option: _measure(held.get(option.gpu, ())))
    return {option.gpu: WHOLE for option in least[: need.count]}


def _fits(option: Option, held: Sequence[Amount]) -> bool:
    if option.amount is WHOLE or option.total_mib is None:
        return not held
    return _measure(held) + option.amount <= option.total_mib


def _measure(held: Sequence[Amount]) -> float:
    return sum(float("inf") if amount is WHOLE else amount for amount in held)


def _gpus(count: int) -> str:
    return f"{count} GPU" if count == 1 else f"{count} GPUs"
