"""A run by hand: a study in the store, two containers, one receiver; and the same again after a failure."""

from __future__ import annotations

import logging
import uuid
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import docker
import pytest

from flows_engine.definition.schema import FlowDefinition, Node
from flows_engine.definition.trigger import Trigger
from flows_engine.destinations.part10_head import read_head
from flows_engine.errors import (
    DestinationUnavailableError,
    ModelFailedError,
    NoInputError,
    NotAllowedError,
    WorkspaceError,
)
from flows_engine.run_step import StepResult
from flows_engine.wiring import Engine
from tests.factories import ct_slice, leaked_canaries
from tests.fakes.store_scp import StoreScp
from tests.integration.one_study import STUDY, engine_with_one_study
from tests.remote_engine import own_engine
from tests.services import unused_port

pytestmark = pytest.mark.docker
logger = logging.getLogger("test")


@pytest.fixture
def engine(tmp_path: Path) -> Engine:
    return engine_with_one_study(tmp_path / "data")


def _flow(*commands: str, **docker_kwargs: object) -> FlowDefinition:
    models = [
        {
            "docker_kwargs": {"image": "busybox", "command": ["sh", "-c", command], **docker_kwargs},
            "pull_before_exec": False,
        }
        for command in commands
    ]
    return FlowDefinition.model_validate({"name": "two", "triggers": [], "models": models})


def test_two_models_and_a_delivery_that_a_retry_completes(
    engine: Engine, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    run_id = str(uuid.uuid4())
    definition = _flow(
        'mkdir /output/deep; cp /input/* /output/deep; echo reading CANARYSURNAME QUILLON for "$DICOMFLOW_RUN"',
        "cp -r /input/* /output; ls -R /input > /output/report.txt",
    )
    results = [engine.run_step(definition, step=step, run_id=run_id, study_id=STUDY, logger=logger) for step in (0, 1)]
    assert [result.file_count for result in results] == [3, 4]
    assert f"reading [patient] for {run_id}" in caplog.messages
    assert leaked_canaries(caplog.text) == []

    down = Node(host="127.0.0.1", port=unused_port(), ae_title="RECEIVER")
    with pytest.raises(DestinationUnavailableError):
        engine.deliver(output_dir=results[1].output_dir, node=down, number=0, run_id=run_id, logger=logger)
    with StoreScp().listening() as scp:
        node = Node(host="127.0.0.1", port=scp.port, ae_title="RECEIVER")
        sent = [
            engine.deliver(
                output_dir=results[1].output_dir, node=node, number=0, run_id=run_id, logger=logger
            ).sent_count
            for _ in range(2)
        ]
    assert sent == [3, 0]
    originals = sorted((tmp_path / "data" / "studies" / STUDY / "input").iterdir())
    assert sorted(data for _, _, data in scp.instances) == sorted(
        path.read_bytes()[read_head(path).data_set_offset :] for path in originals
    )
    assert engine.remove_containers(run_id=run_id) == 0


def test_models_get_what_matches_laid_out_as_the_flow_says(engine: Engine, tmp_path: Path) -> None:
    run_id, folder = str(uuid.uuid4()), tmp_path / "data" / "studies" / STUDY / "input"
    ct_slice(Modality="MR").save_as(folder / "mr.dcm", enforce_file_format=True)
    before = {path: (path.stat().st_ino, path.read_bytes()) for path in folder.iterdir()}
    definition = FlowDefinition.model_validate(
        {
            **_flow(
                "cd /input; find . -type f | sort > /output/given.txt; cp CT/1.dcm /output; rm CT/1.dcm; true",
                "cp -r /input/. /output",
            ).model_dump(),
            "triggers": [{"Modality": "CT", "InstanceNumber": "1|2"}],
            "input": "matched",
            "tar_subdir": ["Modality"],
            "expect": {"same_study": True},
        }
    )

    def run(step: int) -> StepResult:
        return engine.run_step(definition, step=step, run_id=run_id, study_id=STUDY, logger=logger)

    first, last = run(0), run(1)
    given = Path(first.output_dir, "given.txt")
    assert given.read_text().split() == ["./CT/1.dcm", "./CT/2.dcm"]
    checked = engine.check_output(definition, output_dir=last.output_dir, run_id=run_id, study_id=STUDY, logger=logger)
    assert (checked.file_count, checked.dicom_count) == (2, 1)
    # Read-only, though the files are links: the study is as it was, and a retry gets the same.
    assert {path: (path.stat().st_ino, path.read_bytes()) for path in folder.iterdir()} == before
    run(0)
    assert given.read_text().split() == ["./CT/1.dcm", "./CT/2.dcm"]
    record = engine.record(definition, run_id=run_id, study_id=STUDY, state="Completed")
    assert record.steps[0].input.files == 2
    assert record.steps[0].input.bytes == sum((folder / name).stat().st_size for name in ("1.dcm", "2.dcm"))


def test_a_run_on_a_study_of_which_nothing_matches_says_so(engine: Engine) -> None:
    definition = _flow("true").model_copy(
        update={"triggers": (Trigger.model_validate({"Modality": "PT"}),), "input": "matched"}
    )
    with pytest.raises(NoInputError, match="none of 3 instances meets a trigger of two"):
        engine.run_step(definition, step=0, run_id=str(uuid.uuid4()), study_id=STUDY, logger=logger)


def test_a_model_that_fails_says_so_in_one_line_without_the_patient(engine: Engine) -> None:
    with pytest.raises(ModelFailedError) as caught:
        engine.run_step(
            _flow("echo cannot read CANARYSURNAME^QUILLON >&2; exit 3"),
            step=0,
            run_id=str(uuid.uuid4()),
            study_id=STUDY,
            logger=logger,
        )
    assert str(caught.value) == "model 1 (busybox) exited with code 3: cannot read [patient]"


def test_a_step_whose_input_is_on_another_host_says_so(engine: Engine) -> None:
    with pytest.raises(WorkspaceError, match=r"^what model 1 left is not whole .*another host"):
        engine.run_step(_flow("true", "true"), step=1, run_id=str(uuid.uuid4()), study_id=STUDY, logger=logger)


def test_a_study_that_is_gone_is_an_engine_error(engine: Engine) -> None:
    gone = STUDY.replace("0", "1")
    with pytest.raises(WorkspaceError, match=gone):
        engine.run_step(_flow("true"), step=0, run_id=str(uuid.uuid4()), study_id=gone, logger=logger)


class _Inspecting(logging.Handler):
    """Inspects the container of a run as soon as that says that it is ready, and lets it go on."""

    def __init__(self, run: Path) -> None:
        super().__init__()
        self._run = run
        self.seen: dict[str, Any] = {}

    def emit(self, record: logging.LogRecord) -> None:
        if record.getMessage() == "ready":
            engine = docker.DockerClient(base_url=own_engine().url)
            self.seen = engine.api.inspect_container(f"dicomflow-{self._run.name}-1")
            engine.close()
            (self._run / "model-1" / "output" / "go").touch()


_FURTHER: Mapping[str, object] = {
    "cap_add": ["SYS_NICE"],
    "ulimits": [{"name": "nofile", "soft": "100", "hard": "200"}],
    "devices": ["/dev/zero:/dev/nothing:r"],
    "extra_hosts": {"licences": "10.0.0.5"},
    "init": "true",
    "hostname": "model1",
    "pids_limit": "100",
    "ipc_mode": "private",
    "dns": ["10.0.0.1"],
    "group_add": ["44"],
    "sysctls": {"net.ipv4.ip_forward": "0"},
    "security_opt": ["seccomp=unconfined"],
    "stop_signal": "SIGINT",
    "network_mode": "bridge",
    "network_disabled": "false",
}


def test_what_the_site_allows_reaches_the_container(engine: Engine, tmp_path: Path) -> None:
    run_id = str(uuid.uuid4())
    definition = _flow("echo ready; while [ ! -e /output/go ]; do usleep 10000; done; hostname", **_FURTHER)
    host = replace(engine.host, docker_kwargs_allowed=tuple(_FURTHER))
    listener = logging.getLogger(f"test.{run_id}")
    listener.setLevel(logging.INFO)
    listener.addHandler(inspecting := _Inspecting(tmp_path / "data" / "runs" / run_id))
    replace(engine, host=host).run_step(definition, step=0, run_id=run_id, study_id=STUDY, logger=listener)
    config, seen = inspecting.seen["HostConfig"], inspecting.seen["Config"]
    assert {
        name: config[name] for name in ("CapAdd", "PidsLimit", "Init", "IpcMode", "Dns", "GroupAdd", "Sysctls")
    } == {
        "CapAdd": ["SYS_NICE"],
        "PidsLimit": 100,
        "Init": True,
        "IpcMode": "private",
        "Dns": ["10.0.0.1"],
        "GroupAdd": ["44"],
        "Sysctls": {"net.ipv4.ip_forward": "0"},
    }
    assert config["Ulimits"] == [{"Name": "nofile", "Soft": 100, "Hard": 200}]
    assert config["Devices"][0]["PathInContainer"] == "/dev/nothing"
    assert config["ExtraHosts"] == ["licences:10.0.0.5"]
    assert config["SecurityOpt"] == ["seccomp=unconfined", "no-new-privileges"]
    assert config["NetworkMode"] == "bridge"
    assert config["Privileged"] is False
    assert (seen["Hostname"], seen["StopSignal"]) == ("model1", "SIGINT")


def test_what_this_host_does_not_allow_makes_no_container(engine: Engine, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    run_id = str(uuid.uuid4())
    # As a run has it that was made elsewhere: through JSON.
    definition = FlowDefinition.model_validate_json(_flow("true", "true", privileged="true").model_dump_json())
    with pytest.raises(NotAllowedError, match=r"^model 1 \(busybox\) asks Docker for privileged, which this host"):
        engine.run_step(definition, step=0, run_id=run_id, study_id=STUDY, logger=logger)
    assert not (engine.runs / run_id).exists()
    assert not any("starts" in message for message in caplog.messages)
