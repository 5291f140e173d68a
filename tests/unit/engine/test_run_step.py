from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from flows_engine.container_spec import GPUS_LABEL, LEASE_LABEL, Origin
from flows_engine.definition.schema import FlowDefinition
from flows_engine.disk_reserve import DiskReserve
from flows_engine.errors import (
    DiskFilledError,
    GpuMissingError,
    GpuUnavailableError,
    ImagePullFailedError,
    ImageUnavailableError,
    ModelFailedError,
    ModelTimedOutError,
    NoSpaceError,
    NotAllowedError,
    StaticMountError,
)
from flows_engine.gpu_choice import Need, Option
from flows_engine.gpu_lease import lease
from flows_engine.interfaces import ContainerSpec
from flows_engine.model_result import UnusableResultError
from flows_engine.redaction import Redactor
from flows_engine.run_step import Host, StepResult, run_step
from flows_engine.static_mounts import StaticMounts
from flows_engine.workspace import Workspace
from tests.fakes.container_runner import FOREVER, FakeContainerRunner

logger = logging.getLogger("test")


def _writes(spec: ContainerSpec) -> Iterator[object]:
    (spec.mounts[1].source / "result").write_text("x")
    (spec.mounts[1].source / "link").symlink_to("/etc/passwd")
    yield "reading Doe^John"
    yield 0


def _fails(_: ContainerSpec) -> Iterator[object]:
    yield "no voxels in Doe^John"
    yield ""
    yield 3


def _hangs(_: ContainerSpec) -> Iterator[object]:
    yield FOREVER


def _run(
    tmp_path: Path,
    runner: FakeContainerRunner,
    image: str,
    *,
    gpus: tuple[str, ...] = (),
    decides: tuple[str, ...] = (),
    allowed: tuple[str, ...] = (),
    disk: DiskReserve | None = None,
    docker: dict[str, object] | None = None,
    beside: tuple[dict[str, object], ...] = (),
    **model: Any,
) -> StepResult:
    (tmp_path / "input").mkdir(exist_ok=True)
    definition = FlowDefinition.model_validate(
        {
            "name": "flow",
            "triggers": [],
            "models": [{"docker_kwargs": {"image": image, **(docker or {})}, **model}, *beside],
            "model_decides": decides,
        }
    )
    return run_step(
        definition,
        step=0,
        sources={"src": tmp_path / "input"},
        origin=Origin(run_id="run", study_id="study", instance_id="site"),
        workspace=Workspace(tmp_path / "run"),
        host=Host(
            gpus=gpus,
            gpu_folder=tmp_path / "locks",
            lost_gpu_folder=tmp_path / "lost-gpus",
            gpu_wait_seconds=0,
            branch_slots=1,
            branch_folder=tmp_path / "locks",
            docker_kwargs_allowed=allowed,
            disk=disk or DiskReserve(folder=tmp_path, reserve_bytes=0),
            static_mounts=StaticMounts(static_dir=tmp_path / "static", cache=tmp_path / "cache"),
        ),
        runner=runner,
        redact=Redactor(["Doe^John"]),
        logger=logger,
    )


def _mumbles(spec: ContainerSpec) -> Iterator[object]:
    (spec.mounts[1].source / "result.json").write_text("{")
    yield 0


@pytest.fixture
def runner() -> FakeContainerRunner:
    return FakeContainerRunner({"mumbles": _mumbles, "writes": _writes, "fails": _fails, "hangs": _hangs})


def test_the_result_says_what_was_left(
    tmp_path: Path, runner: FakeContainerRunner, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    result = _run(tmp_path, runner, "writes")
    assert (result.file_count, result.exit_code, result.image_digest) == (1, 0, "sha256:writes")
    assert [path.name for path in sorted(Path(result.output_dir).iterdir())] == ["link", "result"]
    assert "reading [patient]" in caplog.messages
    assert any("1 of kind symbolic link" in message for message in caplog.messages)
    assert not any("Doe" in message for message in caplog.messages)
    assert StepResult.model_validate_json(result.model_dump_json()) == result


def test_an_exit_code_is_one_line_with_the_last_words_and_no_patient(
    tmp_path: Path, runner: FakeContainerRunner
) -> None:
    with pytest.raises(ModelFailedError) as caught:
        _run(tmp_path, runner, "fails")
    assert str(caught.value) == "model 1 (fails) exited with code 3: no voxels in [patient]"


@pytest.mark.parametrize(
    ("image", "model", "error"),
    [
        ("hangs", {}, ModelTimedOutError),
        ("missing", {}, ImagePullFailedError),
        ("missing", {"pull_before_exec": False}, ImageUnavailableError),
        ("writes", {"gpu": True}, GpuMissingError),
        ("writes", {"static_mounts": ["NoModel:/model"]}, StaticMountError),
    ],
)
def test_every_error_names_the_model(
    tmp_path: Path, runner: FakeContainerRunner, image: str, model: dict[str, Any], error: type[Exception]
) -> None:
    with pytest.raises(error, match=rf"^model 1 \({image}\): .+") as caught:
        _run(tmp_path, runner, image, **model)
    assert "\n" not in str(caught.value)


def test_gpus_are_held_while_it_runs_and_named_in_its_labels(tmp_path: Path, runner: FakeContainerRunner) -> None:
    _run(tmp_path, runner, "writes", gpus=("7", "9"), gpu=2)
    [spec] = runner.specs
    assert spec.gpu_ids == ("7", "9")
    assert (spec.labels[GPUS_LABEL], len(spec.labels[LEASE_LABEL])) == ("7,9", 32)


def test_a_gpu_that_another_step_holds_is_waited_for(tmp_path: Path, runner: FakeContainerRunner) -> None:
    need = Need(count=1, options=(Option(gpu="7"),))
    with (
        lease(need, folder=tmp_path / "locks", wait_seconds=0, on_wait=lambda: None),
        pytest.raises(GpuUnavailableError, match=r"^model 1 \(writes\): the GPU 7 did not become free"),
    ):
        _run(tmp_path, runner, "writes", gpus=("7",), gpu=True)


def test_a_model_that_asks_for_none_gets_no_gpu(tmp_path: Path, runner: FakeContainerRunner) -> None:
    _run(tmp_path, runner, "writes", gpus=("7",))
    assert runner.specs[0].gpu_ids == ()


def test_a_second_attempt_begins_afresh(tmp_path: Path, runner: FakeContainerRunner) -> None:
    first = _run(tmp_path, runner, "writes")
    (Path(first.output_dir) / "left over").touch()
    assert _run(tmp_path, runner, "writes").file_count == 1


def test_a_model_that_decides_has_to_be_understood_and_another_has_not(
    tmp_path: Path, runner: FakeContainerRunner, caplog: pytest.LogCaptureFixture
) -> None:
    assert _run(tmp_path, runner, "mumbles").result == ""
    assert "result.json is no JSON; nothing is made of it" in caplog.messages
    with pytest.raises(UnusableResultError, match=r"^model 1 \(mumbles\): result\.json is no JSON$"):
        _run(tmp_path, runner, "mumbles", decides=("skip_send",))


def test_what_this_host_does_not_allow_is_not_run(tmp_path: Path, runner: FakeContainerRunner) -> None:
    docker: dict[str, object] = {"privileged": True, "cap_add": "SYS_NICE"}
    with pytest.raises(NotAllowedError) as caught:
        _run(tmp_path, runner, "writes", docker=docker, allowed=("init", "cap_add"))
    assert str(caught.value) == (
        "model 1 (writes) asks Docker for privileged, which this host does not allow; who looks after it can, by"
        " DOCKER_KWARGS_ALLOWED"
    )
    assert runner.specs == []
    assert _run(tmp_path, runner, "writes", docker=docker, allowed=("cap_add", "privileged")).exit_code == 0
    assert runner.specs[0].options["cap_add"] == ["SYS_NICE"]


def test_no_model_runs_before_one_that_this_host_does_not_allow(tmp_path: Path, runner: FakeContainerRunner) -> None:
    last: dict[str, object] = {"docker_kwargs": {"image": "fails", "init": True}}
    with pytest.raises(NotAllowedError, match=r"^model 2 \(fails\) asks Docker for init"):
        _run(tmp_path, runner, "writes", beside=(last,))
    assert runner.specs == []


class _Filling(DiskReserve):
    """A disk of which too little is left once the model has begun to write."""

    def shortage(self) -> str:
        return "only 1.0 MiB are free" if list(self.folder.glob("run/model-1/output/*")) else ""


def _fills(spec: ContainerSpec) -> Iterator[object]:
    (spec.mounts[1].source / "huge").write_bytes(bytes(8192))
    yield "on it"
    yield 0


def test_a_model_that_fills_the_disk_is_told_and_what_it_left_is_removed(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    runner = FakeContainerRunner({"fills": _fills})
    with pytest.raises(DiskFilledError) as caught:
        _run(tmp_path, runner, "fills", disk=_Filling(folder=tmp_path, reserve_bytes=1))
    assert str(caught.value) == (
        "model 1 (fills): it wrote 8,192 bytes to its output, and only 1.0 MiB are free; it was killed, and its output"
        " removed"
    )
    assert not (tmp_path / "run" / "model-1").exists()
    assert "on it" not in caplog.messages


def test_on_a_full_disk_no_model_starts(tmp_path: Path, runner: FakeContainerRunner) -> None:
    with pytest.raises(NoSpaceError, match=r"^model 1 \(writes\): it is not started, since only .* DISK_RESERVE_BYTES"):
        _run(tmp_path, runner, "writes", disk=DiskReserve(folder=tmp_path, reserve_bytes=2**60))
    assert runner.specs == []
    assert not (tmp_path / "run" / "model-1").exists()
