"""A site without its services: studies in store and ledger, flows in a folder, and the flow that runs on them."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import yaml
from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas.objects import FlowRun, State
from prefect.states import Completed
from uuid_utils import uuid7

from deployments.apply import bring_into_step
from dicom_gateway.ledger import Decision, Ledger
from dicom_gateway.reprocess import reprocess
from dicom_gateway.uid_key import UidKey, make_uid_key
from flows_engine.definition.loading import load_definition
from flows_engine.handoff.run_request import Sender
from flows_engine.handoff.study_store import Fingerprint, StudyOutcome, StudyRecord, TagColumn
from tests.factories import CANARY_ID, CANARY_NAME, CANARY_SERIES_DESCRIPTION, flow_keys

RECEIVED_AT = datetime(2024, 5, 6, 7, 8, 9, tzinfo=UTC)


class ReprocessSite:
    """Everything of a site that lies below ``root``; its deployments are on the Prefect server of ``client``."""

    def __init__(self, root: Path, client: SyncPrefectClient) -> None:
        self.data_dir = root / "data"
        self.flows = root / "flows"
        self.client = client
        for folder in (self.data_dir, self.flows):
            folder.mkdir()
        self.ledger = Ledger(self.data_dir / "ledger.sqlite")
        self.uid_key: UidKey = make_uid_key(self.data_dir)

    @property
    def environment(self) -> dict[str, str]:
        return {"DATA_DIR": str(self.data_dir), "FLOW_DIRECTORY": str(self.flows), "CONF_DIR": str(self.flows.parent)}

    def define(self, name: str, **keys: Any) -> None:
        """Write a flow, by default for every CT, and deploy all flows."""
        (self.flows / f"{name}.yaml").write_text(yaml.safe_dump(flow_keys(name=name, **keys)))
        definitions = [load_definition(path).definition for path in sorted(self.flows.glob("*.yaml"))]
        bring_into_step(self.client, definitions, instance_id="this")

    def receive(
        self,
        *,
        modality: str = "CT",
        uids: Iterable[str] = (),
        outcome: StudyOutcome = "triggered",
        received_at: datetime = RECEIVED_AT,
    ) -> str:
        """Put a study into the store and the ledger, as if it had come by C-STORE; return its id."""
        values = {
            "00080060": modality,
            "0008103E": CANARY_SERIES_DESCRIPTION,
            "00100010": CANARY_NAME,
            "00100020": CANARY_ID,
        }
        columns = {tag: TagColumn(values=((value,),), index=(0, 0, 0)) for tag, value in values.items()}
        columns["0020000D"] = TagColumn(values=tuple((uid,) for uid in uids), index=(-1, -1, -1))
        record = StudyRecord(
            study_id=str(uuid7()),
            sender=Sender(ae_title="PACS", host="10.0.0.1", port=104),
            called_ae_title="STORESCP",
            received_at=received_at,
            complete=outcome != "held",
            instance_count=3,
            duplicate_count=0,
            conflict_count=0,
            size_bytes=999,
            fingerprint=Fingerprint(instance_count=3, columns=columns),
        )
        folder = self.data_dir / "studies" / record.study_id
        (folder / "input").mkdir(parents=True)
        (folder / "study.json").write_text(record.model_dump_json())
        self.ledger.add(record, uid_hashes=self.uid_key.hashes_of(record))
        if outcome != "received":
            self.ledger.decide(record.study_id, Decision(outcome=outcome, reason="as this test wants it"))
        return record.study_id

    def ask(self, **parameters: Any) -> State[Any]:
        """Have the flow run in this process, and return the state in which it ends."""
        state: State[Any] = reprocess(**parameters, return_state=True)
        return state

    def runs(self, study_id: str = "") -> list[FlowRun]:
        """Return the runs on a study, or on all, in the order in which they were made."""
        found = self.client.read_flow_runs()
        return sorted(
            (run for run in found if run.name.endswith(study_id) and "definition" in run.parameters),
            key=lambda run: str(run.created),
        )

    def finish(self, run: FlowRun) -> None:
        self.client.set_flow_run_state(run.id, Completed(message="sent"), force=True)
