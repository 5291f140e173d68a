from __future__ import annotations

import fcntl
import json
import os
import random
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from pathlib import Path
from signal import SIGKILL, SIGSTOP

import pytest

from flows_engine.errors import GpuUnavailableError, RunHaltedError
from flows_engine.gpu_choice import Need, Option
from flows_engine.gpu_lease import Lease, is_held, lease
from tests.fakes.gpu_user import TOTAL_MIB, note
from tests.services import ROOT


def whole(*gpus: str, count: int = 1) -> Need:
    return Need(count=count, options=tuple(Option(gpu=gpu) for gpu in gpus))


def part(mib: int) -> Need:
    return Need(count=1, options=(Option(gpu="0", amount=mib, total_mib=1000),))


def taken(need: Need, folder: Path, *, wait_seconds: float = 0) -> AbstractContextManager[Lease]:
    return lease(need, folder=folder, wait_seconds=wait_seconds, on_wait=lambda: None)


def assert_taken_by_others(need: Need, folder: Path) -> None:
    with pytest.raises(GpuUnavailableError), taken(need, folder):
        pass


@contextmanager
def another_process(folder: Path, *gpus: str) -> Iterator[subprocess.Popen[bytes]]:
    script = (
        "import sys, time; from pathlib import Path\n"
        "from flows_engine.gpu_choice import Need, Option; from flows_engine.gpu_lease import lease\n"
        "need = Need(count=len(sys.argv) - 2, options=tuple(Option(gpu=gpu) for gpu in sys.argv[2:]))\n"
        "tell = lambda: print('waits', flush=True)\n"
        "with lease(need, folder=Path(sys.argv[1]), wait_seconds=60, on_wait=tell) as it:\n"
        "    print('held', it.name, flush=True); time.sleep(600)\n"
    )
    process = subprocess.Popen([sys.executable, "-c", script, str(folder), *gpus], stdout=subprocess.PIPE, cwd=ROOT)
    try:
        yield process
    finally:
        process.kill()
        process.wait()
        assert process.stdout is not None
        process.stdout.close()


def line(process: subprocess.Popen[bytes]) -> list[str]:
    assert process.stdout is not None
    return process.stdout.readline().decode().split()


def test_two_leases_never_share_a_gpu_and_a_third_waits_in_vain(tmp_path: Path) -> None:
    with taken(whole("0", "1"), tmp_path) as first, taken(whole("0", "1"), tmp_path) as second:
        assert {*first.gpus, *second.gpus} == {"0", "1"}
        assert first.name != second.name
        with pytest.raises(GpuUnavailableError, match=r"1 GPU of 0, 1 .* 0\.3 seconds"):
            taken(whole("0", "1"), tmp_path, wait_seconds=0.3).__enter__()
    with taken(whole("0"), tmp_path) as again:
        assert again.gpus == ("0",)


def test_several_are_taken_all_or_none(tmp_path: Path) -> None:
    with taken(whole("0"), tmp_path):
        assert_taken_by_others(whole("0", "1", count=2), tmp_path)
        with taken(whole("0", "1"), tmp_path) as other:
            assert other.gpus == ("1",)
    with taken(whole("0", "1", count=2), tmp_path) as both:
        assert both.gpus == ("0", "1")


def test_sharers_get_as_much_as_there_is_and_a_whole_gpu_is_not_shared(tmp_path: Path) -> None:
    with taken(part(600), tmp_path), taken(part(400), tmp_path):
        assert_taken_by_others(part(1), tmp_path)
        assert_taken_by_others(whole("0"), tmp_path)
    with taken(whole("0"), tmp_path):
        assert_taken_by_others(part(1), tmp_path)


def test_who_waits_is_told_once_and_gets_it_when_it_is_free(tmp_path: Path) -> None:
    told: list[float] = []
    with ExitStack() as first:
        first.enter_context(taken(whole("0"), tmp_path))
        threading.Timer(0.5, first.pop_all().close).start()
        with lease(
            whole("0"), folder=tmp_path, wait_seconds=30, on_wait=lambda: told.append(time.monotonic())
        ) as second:
            assert second.gpus == ("0",)
    assert len(told) == 1


def test_who_waits_for_a_run_that_ends_waits_no_longer(tmp_path: Path) -> None:
    with (
        taken(whole("0"), tmp_path),
        pytest.raises(RunHaltedError),
        lease(whole("0"), folder=tmp_path, wait_seconds=60, on_wait=lambda: None, is_halted=lambda: True),
    ):
        pass


def test_two_who_want_two_each_do_not_block_each_other(tmp_path: Path) -> None:
    done: list[str] = []

    def take() -> None:
        for _ in range(5):
            with taken(whole("0", "1", count=2), tmp_path, wait_seconds=30) as held:
                done.append(held.name)

    threads = [threading.Thread(target=take) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=60)
    assert len(set(done)) == 10


def test_one_who_waits_for_a_whole_gpu_is_not_passed_by_sharers(tmp_path: Path) -> None:
    with taken(part(100), tmp_path), another_process(tmp_path, "0") as patient:
        assert line(patient) == ["waits"]
        assert_taken_by_others(part(100), tmp_path)
    with taken(part(100), tmp_path, wait_seconds=5):
        pass


def test_nothing_of_a_lease_remains_when_it_is_over(tmp_path: Path) -> None:
    with taken(whole("0"), tmp_path) as held:
        assert is_held(held.name, folder=tmp_path)
    assert not is_held(held.name, folder=tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["mutex"]


@pytest.mark.parametrize("name", ["", "mutex", "../mutex", "0" * 32])
def test_what_is_no_lease_is_not_held(tmp_path: Path, name: str) -> None:
    with taken(whole("0"), tmp_path):
        assert not is_held(name, folder=tmp_path)


def test_an_id_is_not_a_path(tmp_path: Path) -> None:
    with taken(whole("../GPU-1/2"), tmp_path / "locks") as held:
        assert held.gpus == ("../GPU-1/2",)
        assert {path.parent for path in tmp_path.rglob("*") if path.is_file()} == {tmp_path / "locks"}


def test_a_killed_process_frees_its_gpus(tmp_path: Path) -> None:
    with another_process(tmp_path, "0", "1") as holder:
        _, name = line(holder)
        assert is_held(name, folder=tmp_path)
        assert_taken_by_others(whole("0", "1"), tmp_path)
        holder.kill()
        holder.wait()
        assert not is_held(name, folder=tmp_path)
        with taken(whole("0", "1", count=2), tmp_path):
            assert not (tmp_path / name).exists()


def test_a_child_does_not_keep_what_its_parent_held(tmp_path: Path) -> None:
    with taken(whole("0"), tmp_path):
        child = subprocess.Popen(["sleep", "60"], close_fds=False)
    try:
        with taken(whole("0"), tmp_path):
            pass
    finally:
        child.kill()
        child.wait()


def test_a_process_that_died_while_it_wrote_blocks_nobody(tmp_path: Path) -> None:
    (tmp_path / ("a" * 32)).write_text('{"arrival": 1, "ne')
    (tmp_path / "mutex").touch()
    with taken(whole("0"), tmp_path):
        assert not (tmp_path / ("a" * 32)).exists()


def test_a_list_that_stays_locked_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("flows_engine.gpu_lease._MUTEX_SECONDS", 0.1)
    with (tmp_path / "mutex").open("w") as mutex:
        fcntl.flock(mutex, fcntl.LOCK_EX)
        with pytest.raises(GpuUnavailableError, match="locked for"):
            taken(whole("0"), tmp_path).__enter__()


def test_no_gpu_is_ever_given_out_twice_whoever_is_killed(tmp_path: Path) -> None:
    folder, notes, dice = tmp_path / "locks", tmp_path / "notes", random.Random(1)
    command = [sys.executable, "-m", "tests.fakes.gpu_user", str(folder), str(notes)]
    processes = [subprocess.Popen([*command, str(seed), "8"], cwd=ROOT) for seed in range(8)]
    try:
        while not notes.exists():
            time.sleep(0.05)
        for victim in dice.sample(processes, 4):
            time.sleep(dice.uniform(0.1, 0.5))
            _kill(victim, notes)
        survivors = [process for process in processes if process.returncode is None]
        assert [process.wait(timeout=120) for process in survivors] == [0] * len(survivors)
    finally:
        for process in processes:
            process.kill()
            process.wait()
    most_at_once = _check(notes)
    assert most_at_once > 2, "they never shared: the test tests nothing"


def _kill(process: subprocess.Popen[bytes], notes: Path) -> None:
    # It is noted as gone while it cannot act and its lease still stands: nobody can have taken its GPUs before.
    os.kill(process.pid, SIGSTOP)
    os.waitpid(process.pid, os.WUNTRACED)
    note(notes, {"ends": process.pid})
    os.kill(process.pid, SIGKILL)
    process.wait()


def _check(notes: Path) -> int:
    """Replay the notes; fail where a GPU was held beyond what it has. Return how many held some at the same time."""
    holders: dict[int, dict[str, int | None]] = {}
    most = 0
    for event in map(json.loads, notes.read_text().splitlines()):
        if "begins" in event:
            holders[event["begins"]] = dict.fromkeys(event["gpus"], event["amount"])
        else:
            holders.pop(event["ends"], None)
        for gpu, total in TOTAL_MIB.items():
            amounts = [held[gpu] for held in holders.values() if gpu in held]
            assert len(amounts) == 1 or None not in amounts, (gpu, holders)
            assert sum(amount or 0 for amount in amounts) <= total, (gpu, holders)
        most = max(most, len(holders))
    return most
