"""A process that takes GPUs again and again, and notes what it holds.

    python -m tests.fakes.gpu_user FOLDER NOTES SEED ROUNDS

Each time it takes an amount by chance: a whole GPU or two, or some MiB of one or two. To NOTES it appends that it
begins to hold them, and then that it ends.
"""

from __future__ import annotations

import json
import os
import random
import sys
import time
from pathlib import Path

from flows_engine.gpu_choice import Need, Option
from flows_engine.gpu_lease import lease

TOTAL_MIB = {"0": 1000, "1": 1000}


def main(folder: Path, notes: Path, seed: int, rounds: int) -> None:
    dice = random.Random(seed)
    for _ in range(rounds):
        amount = dice.choice([None, 100, 100, 200, 300, 600])
        options = tuple(Option(gpu=gpu, amount=amount, total_mib=total) for gpu, total in TOTAL_MIB.items())
        need = Need(count=dice.choice([1, 1, 2]), options=options)
        with lease(need, folder=folder, wait_seconds=60, on_wait=lambda: None) as held:
            note(notes, {"begins": os.getpid(), "gpus": held.gpus, "amount": amount})
            time.sleep(dice.uniform(0, 0.2))
            note(notes, {"ends": os.getpid()})


def note(notes: Path, what: dict[str, object]) -> None:
    """Append a line. It needs no lock, which a process that was stopped could keep: one short write is not torn."""
    descriptor = os.open(notes, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
    os.write(descriptor, json.dumps(what).encode() + b"\n")
    os.close(descriptor)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4]))
