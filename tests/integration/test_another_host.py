"""A run that began on one host and is taken by another, whose DATA_DIR is its own: it says so, and runs nothing."""

from __future__ import annotations

import logging
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from flows_engine.definition.schema import FlowDefinition, Node
from flows_engine.errors import ModelFailedError, NoSpaceError, WorkspaceError
from flows_engine.handoff.site_settings import SiteSettings
from flows_engine.run_step import StepResult
from flows_engine.wiring import Engine, build_engine
from tests.factories import flow_keys, model_keys
from tests.integration.one_study import STUDY, engine_with_one_study

pytestmark = pytest.mark.docker
RUN = "6f1e9a52-0c0f-4b7e-9a3e-3f6f6f6f0001"
WAY_OUT = r"the run began on another host, .*share one DATA_DIR, or process the study again"
COPIES = "echo runs; cp /input/* /output/"
TWO = FlowDefinition.model_validate(
    {"name": "Two", **flow_keys(models=[model_keys(docker_kwargs={"command": ["sh", "-c", COPIES]})] * 2)}
)
NODE = Node(host="127.0.0.1", port=1, ae_title="ARCHIVE")
logger = logging.getLogger("test")


def run_step(engine: Engine, step: int) -> StepResult:
    return engine.run_step(TWO, step=step, run_id=RUN, study_id=STUDY, logger=logger)


@pytest.fixture
def host_a(tmp_path: Path) -> Engine:
    return engine_with_one_study(tmp_path / "a")


@pytest.fixture
def host_b(tmp_path: Path) -> Engine:
    """Another host, whose folders are empty."""
    return build_engine(SiteSettings(data_dir=tmp_path / "b", static_dir=tmp_path / "static"))


def test_where_the_study_is_not_there_it_says_what_is_missing(
    host_a: Engine, host_b: Engine, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    run_step(host_a, 0)
    caplog.clear()
    missing = re.escape(f"study {STUDY} is not in {tmp_path / 'b' / 'studies'}; ")
    with pytest.raises(WorkspaceError, match=missing + WAY_OUT) as caught:
        run_step(host_b, 1)
    assert "\n" not in str(caught.value)
    assert "runs" not in caplog.messages


@pytest.mark.parametrize("was_killed_there", [False, True])
def test_what_an_earlier_model_left_on_the_first_host_is_not_replaced_by_what_is_here(
    host_a: Engine, host_b: Engine, caplog: pytest.LogCaptureFixture, was_killed_there: bool
) -> None:
    caplog.set_level(logging.INFO)
    run_step(host_a, 0)
    shutil.copytree(host_a.store.root, host_b.store.root)
    if was_killed_there:  # an attempt of the first model, before the other host finished it
        (host_b.runs / RUN / "model-1" / "output").mkdir(parents=True)
        (host_b.runs / RUN / "model-1" / "output" / "half").touch()
        (host_b.runs / RUN / "model-1.unfinished").touch()
    caplog.clear()
    with pytest.raises(WorkspaceError, match="what model 1 left is not whole below .*" + WAY_OUT):
        run_step(host_b, 1)
    assert "runs" not in caplog.messages
    shutil.copytree(host_a.runs / RUN, host_b.runs / RUN, dirs_exist_ok=True)
    (host_b.runs / RUN / "model-1" / "output" / "half").unlink(missing_ok=True)
    (host_b.runs / RUN / "model-1.unfinished").unlink(missing_ok=True)
    assert run_step(host_b, 1).file_count == 3


@pytest.mark.parametrize("record", ["not written", "half"])
def test_a_model_that_has_finished_is_whole_whether_or_not_it_is_written_down_how_it_was_run(
    host_a: Engine, monkeypatch: pytest.MonkeyPatch, record: str
) -> None:
    def full(*_: object) -> None:
        raise NoSpaceError("no room")

    with monkeypatch.context() as disk:
        disk.setattr("flows_engine.run_step.write_record", full)
        run_step(host_a, 0)
    kept = host_a.runs / RUN / "model-1" / "record.json"
    assert not kept.exists()
    if record == "half":
        kept.write_text('{"model": 1')
    assert run_step(host_a, 1).file_count == 3


def test_a_model_that_is_run_again_counts_as_unfinished_until_it_has_ended_well(host_a: Engine) -> None:
    run_step(host_a, 0)
    fails = TWO.model_validate(
        {"name": "Two", **flow_keys(models=[model_keys(docker_kwargs={"command": ["false"]}), model_keys()])}
    )
    with pytest.raises(ModelFailedError):
        host_a.run_step(fails, step=0, run_id=RUN, study_id=STUDY, logger=logger)
    with pytest.raises(WorkspaceError, match="what model 1 left is not whole below"):
        run_step(host_a, 1)
    run_step(host_a, 0)
    assert run_step(host_a, 1).file_count == 3


RESULTS = pytest.mark.parametrize(
    "do",
    [
        lambda engine, folder: engine.check_output(TWO, output_dir=folder, run_id=RUN, study_id=STUDY, logger=logger),
        lambda engine, folder: engine.deliver(output_dir=folder, node=NODE, number=0, run_id=RUN, logger=logger),
    ],
    ids=["check output", "send"],
)


@RESULTS
def test_half_results_of_a_killed_attempt_are_not_sent(host_a: Engine, do: Callable[[Engine, str], object]) -> None:
    left = Path(run_step(host_a, 0).output_dir)
    (host_a.runs / RUN / "model-1.unfinished").touch()
    with pytest.raises(WorkspaceError, match=re.escape(f"is not whole at {left}; ") + WAY_OUT):
        do(host_a, str(left))


@RESULTS
def test_results_that_lie_on_the_first_host_are_not_taken_for_none(
    host_a: Engine, host_b: Engine, tmp_path: Path, do: Callable[[Engine, str], object]
) -> None:
    shutil.copytree(host_a.store.root, host_b.store.root)
    there = str(tmp_path / "elsewhere" / RUN / "model-2" / "output")
    with pytest.raises(WorkspaceError, match=re.escape(f"is not at {there}; ") + WAY_OUT):
        do(host_b, there)
