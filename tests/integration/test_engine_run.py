"""A run by hand: a study in the store, two containers, one receiver; and the same again after a failure."""

from __future__ import annotations

import logging
import uuid
from datetime import UTC, datetime
from pathlib import Path

import pytest

from flows_engine.definition.schema import FlowDefinition, Node
from flows_engine.definition.trigger import Trigger
from flows_engine.destinations.part10_head import read_head
from flows_engine.errors import DestinationUnavailableError, ModelFailedError, NoInputError, WorkspaceError
from flows_engine.handoff.run_request import Sender
from flows_engine.handoff.site_settings import SiteSettings
from flows_engine.handoff.study_store import Fingerprint, StudyRecord, TagColumn
from flows_engine.run_step import StepResult
from flows_engine.wiring import Engine, build_engine
from tests.factories import CANARY_NAME, ct_slice, leaked_canaries
from tests.fakes.store_scp import StoreScp
from tests.services import unused_port

pytestmark = pytest.mark.docker
STUDY = "0193e4c2-7a54-7cc3-98c4-dc0c0c07398f"
logger = logging.getLogger("test")


@pytest.fixture
def engine(tmp_path: Path) -> Engine:
    study = tmp_path / "data" / "studies" / STUDY
    (study / "input").mkdir(parents=True)
    for number in range(3):
        ct_slice(instance_number=number).save_as(study / "input" / f"{number}.dcm", enforce_file_format=True)
    names = TagColumn(values=((CANARY_NAME,),), index=(0, 0, 0))
    record = StudyRecord(
        study_id=STUDY,
        sender=Sender(ae_title="CT", host="127.0.0.1", port=1),
        called_ae_title="STORESCP",
        received_at=datetime.now(UTC),
        complete=True,
        instance_count=3,
        duplicate_count=0,
        conflict_count=0,
        size_bytes=1,
        fingerprint=Fingerprint(instance_count=3, columns={"00100010": names}),
    )
    (study / "study.json").write_text(record.model_dump_json())
    return build_engine(SiteSettings(data_dir=tmp_path / "data", static_dir=tmp_path / "static", ae_title="SITE"))


def _flow(*commands: str) -> FlowDefinition:
    models = [
        {"docker_kwargs": {"image": "busybox", "command": ["sh", "-c", command]}, "pull_before_exec": False}
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
    with pytest.raises(WorkspaceError, match=r"^model 2 \(busybox\): .*another host"):
        engine.run_step(_flow("true", "true"), step=1, run_id=str(uuid.uuid4()), study_id=STUDY, logger=logger)


def test_a_study_that_is_gone_is_an_engine_error(engine: Engine) -> None:
    gone = STUDY.replace("0", "1")
    with pytest.raises(WorkspaceError, match=gone):
        engine.run_step(_flow("true"), step=0, run_id=str(uuid.uuid4()), study_id=gone, logger=logger)
