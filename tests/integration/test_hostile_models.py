"""Models that mean harm, in real containers: each run ends, says why, and leaves what can be removed."""

from __future__ import annotations

import contextlib
import logging
import os
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from flows_engine.definition.schema import FlowDefinition, Node
from flows_engine.errors import (
    DeliveryRefusedError,
    DiskFilledError,
    EngineError,
    NoSpaceError,
    NothingToSendError,
    UnexpectedOutputError,
    WorkspaceError,
)
from flows_engine.folder_tree import remove_tree
from flows_engine.run_step import StepResult
from flows_engine.wiring import Engine
from tests.fakes.store_scp import StoreScp
from tests.integration.one_study import STUDY, engine_with_one_study
from tests.remote_engine import own_engine
from tests.services import ROOT

pytestmark = pytest.mark.docker
logger = logging.getLogger("test")

_MIB = 2**20
_WORKER = 4711
"""A user who is not root."""
_DISK_BYTES = 64 * _MIB
_RESERVE_BYTES = 16 * _MIB
# Made by `mkdir -p`, since a shell remembers where it is by a path.
_DEEP = (
    "p=$(printf 'd/%.0s' $(seq {levels})); cd /output; for i in $(seq {times}); do mkdir -p $p; cd -P $p; done;"
    " cp /input/0.dcm x.dcm"
)
_ODD = (
    "truncate -s 1024G /output/sparse; mkfifo /output/fifo; mknod /output/disk b 8 0; mknod /output/null c 1 3;"
    " ln -s /output/socket /dev/log; syslogd -n & ln -s / /output/root; ln -s /etc/passwd /output/passwd.dcm;"
    " ln -s . /output/loop; mkdir /output/locked; cp /input/0.dcm /output/locked/0.dcm; chmod 0 /output/locked/0.dcm;"
    " chmod 0 /output/locked; while [ ! -S /output/socket ]; do usleep 10000; done; "
)


class Hospital:
    """One study, and models that a test writes as shell scripts."""

    def __init__(self, data_dir: Path, *, disk_reserve_bytes: int = 0) -> None:
        self.data_dir = data_dir
        self.engine: Engine = engine_with_one_study(data_dir, disk_reserve_bytes=disk_reserve_bytes)
        self.run_id = str(uuid.uuid4())

    @property
    def folder(self) -> Path:
        return self.data_dir / "runs" / self.run_id

    def run(self, *scripts: str, step: int = 0, timeout_seconds: float = 60, writable: bool = False) -> StepResult:
        return self.engine.run_step(
            self.flow(*scripts, timeout_seconds=timeout_seconds, writable=writable),
            step=step,
            run_id=self.run_id,
            study_id=STUDY,
            logger=logger,
        )

    def flow(self, *scripts: str, timeout_seconds: float = 60, writable: bool = False) -> FlowDefinition:
        models = [
            {
                "docker_kwargs": {"image": "busybox", "command": ["sh", "-c", script]},
                "pull_before_exec": False,
                "input_writable": writable,
                "timeout": timeout_seconds,
            }
            for script in scripts
        ]
        destination = {"host": "127.0.0.1", "port": 104, "ae_title": "ARCHIVE"}
        return FlowDefinition.model_validate(
            {"name": "hostile", "triggers": [], "models": models, "destinations": [destination]}
        )

    def check(self, result: StepResult) -> None:
        self.engine.check_output(
            self.flow("true"), output_dir=result.output_dir, run_id=self.run_id, study_id=STUDY, logger=logger
        )

    def deliver(self, result: StepResult, scp: StoreScp) -> None:
        node = Node(host="127.0.0.1", port=scp.port, ae_title="ARCHIVE")
        self.engine.deliver(output_dir=result.output_dir, node=node, number=0, run_id=self.run_id, logger=logger)


@pytest.fixture
def hospital(tmp_path: Path) -> Iterator[Hospital]:
    hospital = Hospital(tmp_path / "data")
    yield hospital
    assert hospital.engine.remove_containers(run_id=hospital.run_id) == 0
    remove_tree(hospital.folder)
    assert not hospital.folder.exists()


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    if os.geteuid() != 0:
        pytest.skip("only root may mount a disk of its own")
    folder = tmp_path / "disk"
    folder.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={_DISK_BYTES}", "tmpfs", str(folder)], check=True)
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


@pytest.fixture
def on_a_small_disk(small_disk: Path) -> Iterator[Hospital]:
    hospital = Hospital(small_disk / "data", disk_reserve_bytes=_RESERVE_BYTES)
    yield hospital
    assert hospital.engine.remove_containers(run_id=hospital.run_id) == 0


def _free_bytes(folder: Path) -> int:
    found = os.statvfs(folder)
    return found.f_bavail * found.f_frsize


# A model that is killed in time, one that meets the end of the disk first, and one that nobody hears.
@pytest.mark.parametrize(
    "script",
    [
        "while :; do head -c 1000000 /dev/zero >> /output/big; usleep 20000; done",
        "cat /dev/zero > /output/big 2>/dev/null; exit 3",
        "exec >&- 2>&-; trap '' TERM; while :; do head -c 1000000 /dev/zero >> /output/big; usleep 20000; done",
    ],
)
def test_a_model_that_fills_the_disk_is_ended_and_its_room_comes_back(on_a_small_disk: Hospital, script: str) -> None:
    before = _free_bytes(on_a_small_disk.data_dir)
    with pytest.raises(DiskFilledError) as caught:
        on_a_small_disk.run(script, timeout_seconds=20)
    sentence = str(caught.value)
    assert sentence.startswith("model 1 (busybox): it wrote ")
    assert int(sentence.split()[5].replace(",", "")) > _DISK_BYTES - _RESERVE_BYTES - 2 * _MIB
    assert (
        f"MiB are free on the disk of {on_a_small_disk.data_dir}, less than DISK_RESERVE_BYTES (16.0 MiB)" in sentence
    )
    assert sentence.endswith("; it was killed, and its output removed")
    assert _free_bytes(on_a_small_disk.data_dir) > before - _MIB
    assert on_a_small_disk.run("cp /input/* /output/").file_count == 3


def test_on_a_disk_that_is_full_already_no_model_starts(
    on_a_small_disk: Hospital, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    other = on_a_small_disk.data_dir / "other"
    other.write_bytes(bytes(_DISK_BYTES - _RESERVE_BYTES))
    with pytest.raises(
        NoSpaceError, match=r"^model 1 \(busybox\): it is not started, since only .* DISK_RESERVE_BYTES"
    ):
        on_a_small_disk.run("true")
    assert caplog.messages == []
    other.unlink()
    assert on_a_small_disk.run("true").exit_code == 0


def test_of_what_is_no_file_nothing_is_opened_and_nothing_is_sent(
    hospital: Hospital, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    started = time.monotonic()
    result = hospital.run(f"{_ODD} cp /input/* /output/")
    assert result.file_count == 5  # the three, the locked one, and the sparse one
    told = next(message for message in caplog.messages if "passed over" in message)
    for kind in ("2 of kind device", "1 of kind fifo", "1 of kind socket", "3 of kind symbolic link"):
        assert kind in told
    with StoreScp().listening() as scp:
        hospital.deliver(result, scp)
    assert len(scp.instances) == 4
    assert time.monotonic() - started < 20


def test_the_next_model_gets_a_copy_of_files_alone_and_holes_take_no_room(hospital: Hospital) -> None:
    scripts = (_ODD, "ls -R /input; [ $(find /input ! -type d ! -type f | wc -l) = 0 ] && cp -r /input/locked /output/")
    hospital.run(*scripts)
    started = time.monotonic()
    result = hospital.run(*scripts, step=1, writable=True)
    assert time.monotonic() - started < 10
    assert (result.exit_code, result.file_count) == (0, 1)
    copied = hospital.folder / "model-2" / "input" / "sparse"
    assert copied.stat().st_size == 2**40
    assert copied.stat().st_blocks * 512 < _MIB


def test_a_terabyte_that_says_it_is_dicom_is_not_read_to_its_end(hospital: Hospital) -> None:
    result = hospital.run("cp /input/* /output/; cp /input/0.dcm /output/big.dcm; truncate -s 1024G /output/big.dcm")
    started = time.monotonic()
    with pytest.raises(UnexpectedOutputError, match=r"big\.dcm"):
        hospital.check(result)
    with (
        StoreScp().listening() as scp,
        pytest.raises(DeliveryRefusedError, match="1 of 4 instances: 1 times most of it"),
    ):
        hospital.deliver(result, scp)
    assert len(scp.instances) == 3
    assert time.monotonic() - started < 10


def test_folders_in_folders_come_to_an_end(hospital: Hospital) -> None:
    deep = _DEEP.format(levels=100, times=2)
    assert hospital.run(deep, "true").file_count == 1
    assert hospital.run(deep, "cp -r /input/* /output/", step=1, writable=True).file_count == 1
    # Longer than any path can be.
    with pytest.raises(
        WorkspaceError, match=r"^model 1 \(busybox\): an output folder has more than 250 folders in each"
    ):
        hospital.run(_DEEP.format(levels=500, times=5))
    # The next attempt begins afresh.
    assert hospital.run("cp /input/* /output/").file_count == 3
    assert sorted(path.name for path in (hospital.folder / "model-1" / "output").iterdir()) == [
        "0.dcm",
        "1.dcm",
        "2.dcm",
    ]


@pytest.mark.parametrize(
    "script",
    [
        "mkfifo /output/result.json",
        "ln -s /etc/passwd /output/result.json",
        "mkdir /output/result.json",
        "truncate -s 1024G /output/result.json",
        "mknod /output/result.json c 1 5",
    ],
)
def test_a_result_that_is_no_file_of_text_is_not_read(
    hospital: Hospital, script: str, caplog: pytest.LogCaptureFixture
) -> None:
    result = hospital.run(script)
    assert result.result == ""
    assert any("result.json" in message and "nothing is made of it" in message for message in caplog.messages)
    with StoreScp().listening() as scp, pytest.raises(NothingToSendError):
        hospital.deliver(result, scp)


@pytest.mark.parametrize(
    "script",
    [
        "head -c 2000000 /dev/urandom; exit 7",
        "b() { b | b & }; b; while :; do usleep 10000; done",
        "(trap '' TERM HUP; while :; do usleep 10000; done) & chmod 0 /output; exit 7",
        "rm -rf /output /input /config /* 2>/dev/null; exit 7",
        "kill -9 1; kill -STOP 1; trap '' TERM INT; while :; do usleep 10000; done",
    ],
    ids=["binary log", "fork bomb", "children", "removes all", "will not end"],
)
def test_a_run_ends_in_one_line_whatever_its_model_does(hospital: Hospital, script: str) -> None:
    with pytest.raises(EngineError) as caught:
        hospital.run(script, timeout_seconds=3)
    assert str(caught.value).startswith("model 1 (busybox)")
    assert len(str(caught.value).splitlines()) == 1
    assert "\x1b" not in str(caught.value)
    assert hospital.run("cp /input/* /output/").file_count == 3
    with contextlib.suppress(FileNotFoundError):
        assert len(list((hospital.data_dir / "studies" / STUDY / "input").iterdir())) == 3


_AS_ROOT = (
    "mkdir -p /output/a/b /output/open; cp /input/0.dcm /output/a/b/; cp /input/1.dcm /output/1.dcm;"
    " cp /input/2.dcm /output/open/2.dcm; chmod 0 /output/1.dcm /output/a/b/0.dcm /output/a/b /output/a;"
    " ln -s /input /output/link; mkfifo /output/fifo"
)


def as_another_user(folder: Path, data_dir: Path) -> None:
    """Run models of root in a process that is not; write down what became of it."""
    # What is imported late could not be read by another user.
    Hospital(folder.parent / "warm" / "data").run("true")
    socket_group = Path(own_engine().url.removeprefix("unix://")).stat().st_gid
    os.setgroups([socket_group])
    os.setgid(_WORKER)
    os.setuid(_WORKER)
    hospital = Hospital(data_dir)
    told = [str(hospital.run(_AS_ROOT, "cp -r /input/* /output/").file_count)]
    told += [str(hospital.run(_AS_ROOT, "cp -r /input/* /output/", step=1, writable=True).file_count)]
    try:
        hospital.run(f"{_AS_ROOT}; while :; do usleep 10000; done", timeout_seconds=2)
    except EngineError as error:
        told += [type(error).__name__]
    # Again from the beginning: what is there has to go.
    told += [str(hospital.run("cp /input/* /output/").file_count)]
    remove_tree(hospital.folder)
    (folder / "told").write_text(" ".join(told))


def test_what_a_model_writes_as_root_is_the_workers_who_is_not() -> None:
    if os.geteuid() != 0 or not own_engine().url.startswith("unix://"):
        pytest.skip("only root may become another user")
    with tempfile.TemporaryDirectory(dir="/tmp") as name:
        folder = Path(name)
        folder.chmod(0o755)
        (folder / "worker").mkdir()
        os.chown(folder / "worker", _WORKER, _WORKER)
        # A process of its own: what others have imported and begun is not to matter.
        script = (
            "import pathlib, sys; from tests.integration.test_hostile_models import as_another_user;"
            " as_another_user(*map(pathlib.Path, sys.argv[1:]))"
        )
        ran = subprocess.run(
            [sys.executable, "-c", script, folder / "worker", folder / "worker" / "data"],
            cwd=ROOT,
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        assert ran.returncode == 0, ran.stderr
        assert (folder / "worker" / "told").read_text() == "3 3 ModelTimedOutError 3"
