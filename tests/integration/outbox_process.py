"""An outbox as a process, made to be killed: ``python -m tests.integration.outbox_process LEDGER API_URL``."""

from __future__ import annotations

import sys
import threading
from pathlib import Path

from prefect.client.orchestration import SyncPrefectClient

from dicom_gateway.ledger import Ledger
from dicom_gateway.outbox import Outbox
from dicom_gateway.prefect_trigger import PrefectTrigger
from tests.fakes.definitions import FakeDefinitions


def main(ledger: Path, api_url: str) -> None:
    """Have the runs created that the ledger asks for, until killed."""
    with PrefectTrigger(SyncPrefectClient(api_url)) as trigger:
        Outbox(Ledger(ledger), trigger, FakeDefinitions()).start()
        threading.Event().wait()


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
