"""What the tests of this room share: a site with a ledger, and the command as a person types it."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import pytest

from deployments.cli import main
from dicom_gateway.ledger import Ledger
from flows_engine.handoff.run_request import Sender
from flows_engine.handoff.site_settings import SiteSettings
from flows_engine.handoff.study_store import Fingerprint, StudyRecord, TagColumn
from tests.factories import CANARY_ID, CANARY_NAME, CANARY_SERIES_DESCRIPTION


@pytest.fixture
def site(tmp_path: Path) -> SiteSettings:
    """A site with empty folders."""
    settings = SiteSettings(
        data_dir=tmp_path / "data", flow_directory=tmp_path / "flows", static_dir=tmp_path / "static"
    )
    for folder in (settings.data_dir, settings.flow_directory, settings.static_dir):
        folder.mkdir()
    return settings


@pytest.fixture
def ledger(site: SiteSettings):
    """The ledger of the site."""
    ledger = Ledger(site.data_dir / "ledger.sqlite")
    yield ledger
    ledger.close()


@pytest.fixture
def store_study(site: SiteSettings, ledger: Ledger) -> Callable[..., StudyRecord]:
    """Put a study into the store and the ledger of the site."""

    def store(number: str = "0001", *, modality: str = "CT", complete: bool = True) -> StudyRecord:
        columns = {
            "00080060": modality,
            "0008103E": CANARY_SERIES_DESCRIPTION,
            "00100010": CANARY_NAME,
            "00100020": CANARY_ID,
        }
        record = StudyRecord(
            study_id=f"0193e4c2-7a54-7cc3-98c4-dc0c0c07{number}",
            sender=Sender(ae_title="PACS[bold]", host="10.0.0.1", port=104),
            called_ae_title="STORESCP",
            received_at=datetime(2024, 5, 6, 7, 8, 9, tzinfo=UTC),
            complete=complete,
            instance_count=3,
            duplicate_count=0,
            conflict_count=0,
            size_bytes=999,
            fingerprint=Fingerprint(
                instance_count=3,
                columns={
                    tag: TagColumn(values=(tuple(value.split("\\")),), index=(0, 0, 0))
                    for tag, value in columns.items()
                },
            ),
        )
        folder = site.data_dir / "studies" / record.study_id
        (folder / "input").mkdir(parents=True)
        (folder / "study.json").write_text(record.model_dump_json())
        ledger.add(record)
        return record

    return store


Command = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def dicomflow(site: SiteSettings, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Command:
    """Run the command on the site, in this process; keywords are further environment variables."""

    def run(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
        for name, value in {**site.as_environment(), "COLUMNS": "300", **environment}.items():
            monkeypatch.setenv(name, value)
        monkeypatch.setattr(sys, "argv", ["dicomflow", *arguments])
        with pytest.raises(SystemExit) as ended:
            main()
        if isinstance(ended.value.code, str):  # what Python itself does with a text
            print(ended.value.code, file=sys.stderr)
        out, err = capfd.readouterr()
        status = ended.value.code if isinstance(ended.value.code, int) else int(ended.value.code is not None)
        return subprocess.CompletedProcess(arguments, status, out, err)

    return run


@pytest.fixture
def dicomflow_process(site: SiteSettings) -> Command:
    """Run the command on the site, in a process of its own; keywords are further environment variables."""

    def run(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
        kept = {name: value for name, value in os.environ.items() if not name.startswith("PREFECT_")}
        return subprocess.run(
            [sys.executable, "-m", "deployments.cli", *arguments],
            env={**kept, **site.as_environment(), **environment},
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )

    return run
