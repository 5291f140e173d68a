"""A store that holds one study, and an engine whose store holds one of three CT slices."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from flows_engine.handoff.run_request import Sender
from flows_engine.handoff.site_settings import SiteSettings
from flows_engine.handoff.study_store import Fingerprint, StudyRecord, TagColumn
from flows_engine.wiring import Engine, build_engine
from tests.factories import CANARY_NAME, ct_slice

STUDY: Final = "0193e4c2-7a54-7cc3-98c4-dc0c0c07398f"


def engine_with_one_study(data_dir: Path, *, disk_reserve_bytes: int = 0) -> Engine:
    """Return the engine of a site in ``data_dir``, whose one study is called ``STUDY``."""
    study = data_dir / "studies" / STUDY
    (study / "input").mkdir(parents=True)
    for number in range(3):
        ct_slice(instance_number=number).save_as(study / "input" / f"{number}.dcm", enforce_file_format=True)
    names = TagColumn(values=((CANARY_NAME,),), index=(0, 0, 0))
    write_record(study, Fingerprint(instance_count=3, columns={"00100010": names}))
    return build_engine(
        SiteSettings(
            data_dir=data_dir,
            static_dir=data_dir.parent / "static",
            ae_title="SITE",
            disk_reserve_bytes=disk_reserve_bytes,
        )
    )


def write_record(study: Path, fingerprint: Fingerprint) -> None:
    """Write what the gateway would have written of the study in this folder."""
    record = StudyRecord(
        study_id=study.name,
        sender=Sender(ae_title="CT", host="127.0.0.1", port=1),
        called_ae_title="STORESCP",
        received_at=datetime.now(UTC),
        complete=True,
        instance_count=fingerprint.instance_count,
        duplicate_count=0,
        conflict_count=0,
        size_bytes=1,
        fingerprint=fingerprint,
    )
    (study / "study.json").write_text(record.model_dump_json())
