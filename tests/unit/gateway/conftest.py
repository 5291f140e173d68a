from __future__ import annotations

from datetime import UTC, datetime

import pytest

from dicom_gateway.ledger import Ledger
from flows_engine.handoff.run_request import RunRequest, Sender
from flows_engine.handoff.study_store import Fingerprint, StudyRecord, TagColumn
from tests.fakes.definitions import flow

NOW = datetime(2024, 5, 6, 7, 8, 9, tzinfo=UTC)
SENDER = Sender(ae_title="PACS", host="10.0.0.1", port=104)


@pytest.fixture
def ledger(tmp_path):
    ledger = Ledger(tmp_path / "ledger.sqlite")
    yield ledger
    ledger.close()


@pytest.fixture
def make_record():
    """Return a maker of records: ``make_record("0001", modality="CT", complete=False)``."""

    def make(number="0001", *, modality="CT", complete=True):
        return StudyRecord(
            study_id=f"0193e4c2-7a54-7cc3-98c4-dc0c0c07{number}",
            sender=SENDER,
            called_ae_title="STORESCP",
            received_at=NOW,
            complete=complete,
            instance_count=3,
            duplicate_count=0,
            conflict_count=0,
            size_bytes=999,
            fingerprint=Fingerprint(
                instance_count=3, columns={"00080060": TagColumn(values=((modality,),), index=(0, 0, 0))}
            ),
        )

    return make


@pytest.fixture
def make_request():
    """Return a maker of requests with their idempotency keys, as a decision holds them."""

    def make(study_id, name="A", *, key=None, priority=3):
        request = RunRequest(
            study_id=study_id,
            study_uri=f"file:///data/studies/{study_id}",
            sender=SENDER,
            received_at=NOW,
            definition=flow(name, {"Modality": "CT"}).model_copy(update={"priority": priority}),
        )
        return request, key or f"{study_id}:{name}:0123"

    return make
