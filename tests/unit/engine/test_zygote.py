"""Real forks of a program that has nothing to do with Prefect."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from flows_engine.worker import zygote_keeper
from flows_engine.worker.zygote_keeper import ForkedProcess, NotForkedError, ZygoteKeeper
from tests.services import ROOT, wait_until

PROGRAM = "tests.fakes.forked_program"
PATIENCE_SECONDS = 30


class Stage:
    """A keeper, and the files that the processes of its zygote write to."""

    def __init__(self, folder: Path, program: str = PROGRAM, **environment: str) -> None:
        self.folder = folder
        self.environment = {**os.environ, "PYTHONPATH": str(ROOT), **environment}
        self.keeper = ZygoteKeeper(program, environment=self.environment)
        self.out, self.err = folder / "out", folder / "err"

    async def start(self, act: str, **environment: str) -> ForkedProcess:
        with self.out.open("ab") as out, self.err.open("ab") as err:
            return await self.keeper.fork(
                environment={"ACT": act, "PATH": os.environ["PATH"], **environment},
                folder=self.folder,
                stdout=out.fileno(),
                stderr=err.fileno(),
            )

    async def run(self, act: str, **environment: str) -> int:
        return await (await self.start(act, **environment)).wait()

    def said(self) -> Any:
        """Return what was printed, as JSON, and forget it."""
        text = self.out.read_text()
        self.out.write_text("")
        return json.loads(text)


@pytest.fixture
def play(tmp_path: Path) -> Callable[..., Any]:
    """Play a scene on a stage whose zygote is gone afterwards."""

    def play(scene: Callable[[Stage], Awaitable[Any]], **options: str) -> Any:
        async def all_of_it() -> Any:
            stage = Stage(tmp_path, **options)
            try:
                return await asyncio.wait_for(scene(stage), PATIENCE_SECONDS)
            finally:
                stage.keeper.stop()

        return asyncio.run(all_of_it())

    return play


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def say(expression: str) -> str:
    return f"import json, os, sys, signal, threading; print(json.dumps({expression}))"


def test_a_process_is_a_child_that_has_imported_the_program_before_it_was_born(play):
    async def scene(stage: Stage) -> None:
        process = await stage.start(say("[os.getpid(), os.getppid(), imported_in]"))
        assert await process.wait() == 0
        assert stage.said() == [process.pid, stage.keeper.pid, stage.keeper.pid]

    play(scene)


def test_its_environment_folder_arguments_and_output_are_its_own_alone(play, tmp_path: Path):
    async def scene(stage: Stage) -> None:
        assert await stage.run(say("[dict(os.environ), os.getcwd(), sys.argv[1:], sys.stdin.read()]"), OWN="1") == 0
        environment, folder, arguments, stdin = stage.said()
        assert {name for name in environment if name not in ("LC_CTYPE",)} == {"ACT", "PATH", "OWN"}
        assert (folder, arguments, stdin) == (str(tmp_path), [], "")
        assert stage.err.read_text() == ""

    play(scene, OF_THE_ZYGOTE="1")


@pytest.mark.parametrize(
    ("act", "status"),
    [
        ("pass", 0),
        ("import sys; sys.exit(3)", 3),
        ("import sys; sys.exit(256 + 7)", 7),
        ("import sys; sys.exit('because')", 1),
        ("raise SystemExit(True)", 1),
        ("1 / 0", 1),
        ("import os; os._exit(9)", 9),
        ("import os, signal; os.kill(os.getpid(), signal.SIGKILL)", -signal.SIGKILL),
        ("import os, signal; os.kill(os.getpid(), signal.SIGTERM)", -signal.SIGTERM),
        ("import os, signal; os.kill(os.getpid(), signal.SIGINT)", -signal.SIGINT),
        ("import os; os.abort()", -signal.SIGABRT),
    ],
)
def test_it_ends_as_a_program_of_its_own_would(play, act: str, status: int, tmp_path: Path):
    own = subprocess.run([sys.executable, "-c", act], check=False, capture_output=True, text=True)
    assert own.returncode == status

    assert play(lambda stage: stage.run(act)) == status

    assert (tmp_path / "err").read_text().splitlines()[-1:] == own.stderr.splitlines()[-1:]


def test_what_is_to_be_done_at_the_end_is_done(play):
    async def scene(stage: Stage) -> None:
        act = (
            "import atexit, threading, time, sys\n"
            "atexit.register(lambda: print('and last'))\n"
            "threading.Thread(target=lambda: (time.sleep(0.2), print('thread'))).start()\n"
            "print('main')\n"
        )
        assert await stage.run(act) == 0
        assert stage.out.read_text() == "main\nthread\nand last\n"

    play(scene)


def test_signals_are_as_they_are_in_a_new_program(play):
    async def scene(stage: Stage) -> None:
        handlers = "[str(signal.getsignal(number)) for number in (2, 15, 17, 13)]"
        act = say(f"{handlers} + [list(signal.pthread_sigmask(signal.SIG_BLOCK, []))]")
        assert await stage.run(act) == 0
        told = stage.said()
        assert "default_int_handler" in told[0]
        own = subprocess.run([sys.executable, "-c", act], check=True, capture_output=True, text=True)
        assert told[1:] == json.loads(own.stdout)[1:]

    play(scene)


def test_it_belongs_to_the_group_and_the_session_of_whoever_asked(play):
    async def scene(stage: Stage) -> None:
        assert await stage.run(say("[os.getpgid(0), os.getsid(0)]")) == 0
        assert stage.said() == [os.getpgid(0), os.getsid(0)]

    play(scene)


def test_processes_do_not_share_their_chance(play):
    async def scene(stage: Stage) -> None:
        act = say(
            "[__import__('random').random(), str(__import__('uuid').uuid4()), str(__import__('uuid_utils').uuid7()),"
            " __import__('numpy').random.random(), __import__('ssl').RAND_bytes(8).hex()]"
        )
        told = []
        for _ in range(2):
            assert await stage.run(act) == 0
            told.append(stage.said())
        assert [one for one, other in zip(*told, strict=True) if one == other] == []

    play(scene, program="tests.fakes.forked_program_with_numpy")


def test_it_inherits_no_open_file_of_another(play):
    async def scene(stage: Stage) -> None:
        waiting = [await stage.start("import time; time.sleep(60)") for _ in range(3)]
        assert await stage.run(say("len(os.listdir('/proc/self/fd'))")) == 0
        # Standard input, output and error, its channel, and the folder that is being listed.
        assert stage.said() == 5
        for process in waiting:
            process.terminate()
            assert await process.wait() == -signal.SIGTERM

    play(scene)


def test_the_channel_does_not_pass_to_what_the_process_starts(play):
    async def scene(stage: Stage) -> None:
        process = await stage.start("import subprocess; subprocess.Popen(['sleep', '60']); ")
        os.kill(stage.keeper.pid, signal.SIGSTOP)  # it tells nothing
        wait_until(lambda: not alive(process.pid), seconds=PATIENCE_SECONDS, what="the process is over")
        os.kill(stage.keeper.pid, signal.SIGKILL)
        assert await process.wait() == -signal.SIGKILL

    play(scene)


def test_the_death_of_one_harms_no_other(play):
    async def scene(stage: Stage) -> None:
        first = await stage.start("import time; time.sleep(60)")
        second = await stage.start("import time; time.sleep(1)")
        os.kill(first.pid, signal.SIGKILL)
        assert await first.wait() == -signal.SIGKILL
        assert await second.wait() == 0
        assert await stage.run(say("os.getppid()")) == 0
        assert stage.said() == stage.keeper.pid

    play(scene)


def test_a_zygote_that_died_is_replaced_and_what_it_forked_goes_on(play, tmp_path: Path):
    async def scene(stage: Stage) -> None:
        process = await stage.start("import pathlib, time\nwhile not pathlib.Path('go').exists(): time.sleep(0.02)")
        dead = stage.keeper.pid
        os.kill(dead, signal.SIGKILL)
        wait_until(lambda: not alive(dead), seconds=PATIENCE_SECONDS, what="the zygote is dead")
        assert await stage.run(say("os.getppid()")) == 0
        assert stage.said() == stage.keeper.pid != dead
        assert alive(process.pid)
        assert process.returncode is None
        (tmp_path / "go").touch()
        # Its end is noticed; how it ended, nobody could see.
        assert await process.wait() == -signal.SIGKILL
        # Its files are closed a moment before it is gone.
        wait_until(lambda: not alive(process.pid), seconds=PATIENCE_SECONDS, what="it is gone")

    play(scene)


def test_a_program_that_cannot_be_imported_is_told_and_not_waited_for(play):
    async def scene(stage: Stage) -> None:
        with pytest.raises(NotForkedError, match="did not fork"):
            await stage.start("pass")

    play(scene, program="tests.fakes.no_such_program")


def test_a_program_that_runs_threads_is_not_forked(play, capfd: pytest.CaptureFixture[str]):
    async def scene(stage: Stage) -> None:
        for _ in range(2):
            with pytest.raises(NotForkedError):
                await stage.start("pass")

    play(scene, program="tests.fakes.forked_program_with_thread")

    assert "zygote: does not fork, since what it has imported runs 1 more threads" in capfd.readouterr().err


def test_a_zygote_that_does_not_answer_is_replaced(play, monkeypatch: pytest.MonkeyPatch):
    async def scene(stage: Stage) -> None:
        assert await stage.run("pass") == 0
        stuck = stage.keeper.pid
        os.kill(stuck, signal.SIGSTOP)
        monkeypatch.setattr(zygote_keeper, "_PATIENCE_SECONDS", 0.3)
        with pytest.raises(NotForkedError):
            await stage.start("pass")
        monkeypatch.setattr(zygote_keeper, "_PATIENCE_SECONDS", 60)
        assert await stage.run("pass") == 0
        assert stage.keeper.pid != stuck
        assert not alive(stuck)

    play(scene)


def test_who_stops_asking_leaves_no_process_behind(play, tmp_path: Path):
    async def scene(stage: Stage) -> None:
        assert await stage.run("pass") == 0
        os.kill(stage.keeper.pid, signal.SIGSTOP)
        asking = asyncio.create_task(stage.start("import pathlib; pathlib.Path('ran').touch()"))
        await asyncio.sleep(0)  # it is on its way
        asking.cancel()
        await asyncio.gather(asking, return_exceptions=True)
        os.kill(stage.keeper.pid, signal.SIGCONT)
        assert await stage.run("pass") == 0  # the zygote works in the order in which it is asked
        children = Path(f"/proc/{stage.keeper.pid}/task/{stage.keeper.pid}/children")
        wait_until(lambda: children.read_text() == "", seconds=PATIENCE_SECONDS, what="no process is left")
        assert not (tmp_path / "ran").exists()

    play(scene)


def test_a_zygote_ends_with_whoever_keeps_it_and_its_processes_go_on(tmp_path: Path):
    keeping = (
        "import asyncio, os, signal, sys; from pathlib import Path\n"
        "from flows_engine.worker.zygote_keeper import ZygoteKeeper\n"
        "async def main():\n"
        f"    keeper = ZygoteKeeper({PROGRAM!r}, environment=dict(os.environ))\n"
        "    act = 'import pathlib, time\\nwhile not pathlib.Path(\"go\").exists(): time.sleep(0.02)\\n'\n"
        "    act += 'pathlib.Path(\"done\").touch()'\n"
        f"    folder = Path({str(tmp_path)!r})\n"
        "    process = await keeper.fork(environment={'ACT': act}, folder=folder, stdout=2, stderr=2)\n"
        "    print(keeper.pid, process.pid, flush=True)\n"
        "    await process.wait()\n"
        "asyncio.run(main())\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", keeping],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        text=True,
    ) as keeper:
        assert keeper.stdout is not None
        zygote, process = map(int, keeper.stdout.readline().split())
        keeper.kill()
    wait_until(lambda: not alive(zygote), seconds=PATIENCE_SECONDS, what="the zygote is gone")
    assert alive(process)
    (tmp_path / "go").touch()
    wait_until((tmp_path / "done").exists, seconds=PATIENCE_SECONDS, what="its process is done")
    wait_until(lambda: not alive(process), seconds=PATIENCE_SECONDS, what="its process is gone")


def test_two_hundred_processes_leave_the_zygote_as_it_was(play):
    def resident_kib(pid: int) -> int:
        fields = dict(line.split(":", 1) for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()[1:])
        return int(fields["Private_Dirty"].split()[0]) + int(fields["Shared_Dirty"].split()[0])

    def open_files(pid: int) -> int:
        return len(list(Path(f"/proc/{pid}/fd").iterdir()))

    async def scene(stage: Stage) -> None:
        for _ in range(20):
            assert await stage.run("pass") == 0
        files, before = open_files(stage.keeper.pid), resident_kib(stage.keeper.pid)
        for _ in range(20):
            started = [await stage.start("pass") for _ in range(10)]
            assert [await process.wait() for process in started] == [0] * 10
        # It closes the channel of a process a moment after it has told how that ended.
        wait_until(lambda: open_files(stage.keeper.pid) <= files, seconds=PATIENCE_SECONDS, what="all files are closed")
        assert resident_kib(stage.keeper.pid) - before < 256

    play(scene)
