"""Studies that are in the ledger, decided on, without a file of them anywhere."""

from __future__ import annotations

from datetime import UTC, datetime

import uuid_utils

from dicom_gateway.intake import idempotency_key
from dicom_gateway.ledger import Decision, Ledger
from flows_engine.definition.schema import FlowDefinition
from flows_engine.handoff.run_request import RunRequest, Sender
from flows_engine.handoff.study_store import Fingerprint, StudyRecord

SENDER = Sender(ae_title="PACS", host="10.0.0.1", port=104)


def request(definition: FlowDefinition, study_id: str) -> RunRequest:
    """Return what a run of ``definition`` on a study is told."""
    return RunRequest(
        study_id=study_id,
        study_uri=f"file:///opt/DicomFlow/data/studies/{study_id}",
        sender=SENDER,
        received_at=datetime.now(UTC),
        definition=definition,
    )


def enter_study(ledger: Ledger, definition: FlowDefinition, *, study_id: str | None = None) -> str:
    """Enter a study that ``definition`` matches, and the decision; return the idempotency key of its run."""
    record = StudyRecord(
        study_id=study_id or str(uuid_utils.uuid7()),
        sender=SENDER,
        called_ae_title="STORESCP",
        received_at=datetime.now(UTC),
        complete=True,
        instance_count=100,
        duplicate_count=0,
        conflict_count=0,
        size_bytes=50_000_000,
        fingerprint=Fingerprint(instance_count=100, columns={}),
    )
    ledger.add(record)
    key = idempotency_key(record.study_id, definition)
    decision = Decision(outcome="triggered", reason="", requests=((request(definition, record.study_id), key),))
    ledger.decide(record.study_id, decision)
    return key
