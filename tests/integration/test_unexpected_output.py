"""A run whose model leaves what its flow does not expect: real Prefect, real container, real receiver."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from prefect.client.schemas.objects import State
from prefect.context import refresh_global_settings_context

import flows_engine.flows.process_study as recipe
from flows_engine.definition.schema import FlowDefinition
from flows_engine.handoff.fingerprint import FingerprintBuilder
from flows_engine.handoff.header import read_file_header
from flows_engine.handoff.run_request import Sender
from flows_engine.handoff.site_settings import SiteSettings
from flows_engine.handoff.study_store import StudyRecord
from flows_engine.wiring import build_engine
from tests.factories import copying_model_keys, ct_series, leaked_canaries, model_keys, write_instances
from tests.fakes.store_scp import StoreScp
from tests.integration.test_process_study import ASKS_THE_ENGINE

pytestmark = [pytest.mark.prefect, pytest.mark.docker]

STUDY = "0193e4c2-7a54-7cc3-98c4-dc0c0c07398f"
SENDER = Sender(ae_title="CT", host="127.0.0.1", port=1)
OTHER_PATIENT = model_keys(command="sh -c 'cp /input/00000.dcm /other/* /output/'", static_mounts=["Other:/other"])


@pytest.fixture
def site(empty_prefect: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A site with one study, received as the gateway does, and another patient's instances in ``STATIC_DIR``."""
    study = tmp_path / "data" / "studies" / STUDY
    fingerprint = FingerprintBuilder()
    for file in write_instances(ct_series(2), study / "input"):
        fingerprint.add(read_file_header(file.read_bytes()))
    record = StudyRecord(
        study_id=STUDY,
        sender=SENDER,
        called_ae_title="STORESCP",
        received_at=datetime.now(UTC),
        complete=True,
        instance_count=2,
        duplicate_count=0,
        conflict_count=0,
        size_bytes=1,
        fingerprint=fingerprint.build(),
    )
    (study / "study.json").write_text(record.model_dump_json())
    (other,) = write_instances(ct_series(1, PatientID="SOMEBODY-ELSE"), tmp_path / "static" / "Other")
    other.rename(other.with_name("other.dcm"))
    settings = SiteSettings(data_dir=tmp_path / "data", static_dir=tmp_path / "static", ae_title="SITE")
    engine = build_engine(settings)
    for module in ASKS_THE_ENGINE:
        monkeypatch.setattr(module, "site_engine", lambda: engine)
    with monkeypatch.context() as environment:
        environment.setenv("CONF_DIR", str(tmp_path))
        environment.setenv("SEND_RETRY_DELAYS_SECONDS", "0")
        environment.setenv("PREFECT_LOCAL_STORAGE_PATH", str(tmp_path / "results"))
        refresh_global_settings_context()
        yield tmp_path
    refresh_global_settings_context()


def process(scp: StoreScp, *, models: list[dict[str, Any]], **keys: Any) -> State[Any]:
    destination = {"host": "127.0.0.1", "port": scp.port, "ae_title": "RECEIVER"}
    definition = FlowDefinition.model_validate(
        {"name": "A", "triggers": [], "models": models, "destinations": [destination], **keys}
    )
    state: State[Any] = recipe.process_study(
        study_id=STUDY, sender=SENDER.model_dump(), definition=definition, return_state=True
    )
    return state


def test_an_output_of_another_patient_is_not_sent(site: Path) -> None:
    with StoreScp().listening() as scp:
        state = process(scp, models=[OTHER_PATIENT])

    assert state.name == "Failed"
    assert state.message == (
        "the output is not as expected, so nothing is sent: same_patient: another Patient ID than the input: other.dcm "
        "(set `expect: {same_patient: false}` if the model is meant to change it)"
    )
    assert (scp.associations, scp.instances) == (0, [])


def test_it_is_sent_where_its_flow_says_that_it_is_meant(site: Path) -> None:
    with StoreScp().listening() as scp:
        state = process(scp, models=[OTHER_PATIENT], expect={"same_patient": False})

    assert state.is_completed()
    assert len(scp.instances) == 2


def test_an_output_of_the_patient_is_sent_and_what_is_expected_is_held_against_it(site: Path) -> None:
    expect = {"same_study": True, "references_exist": True, "dicom_only": True, "min_files": 2, "modality": "CT"}
    with StoreScp().listening() as scp:
        assert process(scp, models=[copying_model_keys()], expect=expect).is_completed()
        state = process(scp, models=[copying_model_keys()], expect={**expect, "modality": "RTSTRUCT", "min_files": 3})

    assert len(scp.instances) == 2
    assert state.is_failed()
    assert state.message is not None
    assert "min_files: 2 of at least 3 files are left" in state.message
    assert "modality: CT, not RTSTRUCT: 00000.dcm, 00001.dcm" in state.message
    assert leaked_canaries(state.message) == []


def test_what_is_expected_is_looked_at_though_nothing_is_sent(site: Path) -> None:
    state = process(StoreScp(), models=[OTHER_PATIENT], destinations=[], expect={})
    assert state.is_failed()
    assert process(StoreScp(), models=[OTHER_PATIENT], destinations=[]).is_completed()
