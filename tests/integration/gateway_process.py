"""A gateway in a process of its own, made to be killed.

``python -m tests.integration.gateway_process DATA_DIR [SETTINGS]``, the settings as JSON.
Its runs are files: a run is created by creating the file that its idempotency key names, as Prefect creates it in its
database, and every call is written down beside it. The port is printed once it listens.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import sys
import threading
from pathlib import Path

from dicom_gateway.wiring import build_gateway
from flows_engine.handoff.run_request import RunRequest
from flows_engine.handoff.site_settings import SiteSettings
from tests.fakes.definitions import FakeDefinitions, flow


class FileTrigger:
    """Runs as files, which outlive the process."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def trigger(self, request: RunRequest, *, idempotency_key: str) -> str:
        """Create the run, unless it is there already, and return its id."""
        run = self._folder / hashlib.sha256(idempotency_key.encode()).hexdigest()
        written = self._folder.parent / f"{run.name}.{threading.get_ident()}"
        written.write_text(request.study_id)
        with contextlib.suppress(FileExistsError):
            os.link(written, run)
        written.unlink()
        return run.name


def main(data_dir: Path, settings: dict[str, object]) -> None:
    """Serve until killed."""
    runs = data_dir / "runs"
    runs.mkdir(exist_ok=True)
    gateway = build_gateway(
        SiteSettings(
            **{
                "data_dir": data_dir,
                "ae_port": 0,
                "incomplete": "process",
                "incomplete_seconds": 0,
                "disk_reserve_bytes": 0,
                **settings,
            }
        ),
        # Prefect's database lies on no disk of the gateway's: a test may have put the folder elsewhere.
        FileTrigger(runs.resolve()),
        FakeDefinitions(flow("CT", {"Modality": "CT"})),
    )
    gateway.start()
    print(gateway.port, flush=True)
    threading.Event().wait()


if __name__ == "__main__":
    main(Path(sys.argv[1]), json.loads(sys.argv[2]) if len(sys.argv) > 2 else {})
