"""What a run says that it does is what it does at that moment, in the API as in ``dicomflow runs``."""

from __future__ import annotations

import json
import threading
from typing import Any

import pytest

from tests.acceptance.prefect_api import PATIENCE_SECONDS
from tests.acceptance.site import Site, gated, node
from tests.fakes.store_scp import StoreScp

pytestmark = [pytest.mark.docker, pytest.mark.dcmtk, pytest.mark.prefect]


def test_a_run_says_what_it_does_while_it_does_it(site: Site) -> None:
    arrived, answer = threading.Event(), threading.Event()

    def hold(_number: int) -> int:
        arrived.set()
        answer.wait(PATIENCE_SECONDS)
        return 0x0000

    peer = StoreScp(status=hold)
    with peer.listening():
        site.define("Telling", gated(), destinations=[node(peer.port, ae_title="RECEIVER")])
        site.send(site.study("Telling", count=1))
        run_id = site.run_of("Telling")
        study_id = site.api.run(run_id)["parameters"]["study_id"]

        def told() -> dict[str, Any]:
            (run,) = json.loads(site.command("runs", "--study", study_id, "--json").stdout)
            return {name: run[name] for name in ("run_id", "code", "state", "flow", "reason", "message")}

        known = {"run_id": run_id, "flow": "Telling", "reason": "received"}
        try:
            site.await_gate(run_id)
            assert told() == {**known, "code": 1, "state": "Running", "message": ""}
            site.open_gate(run_id)
            assert arrived.wait(PATIENCE_SECONDS)
            assert told() == {**known, "code": 3, "state": "Sending", "message": ""}
            assert site.containers(run_id) == []
        finally:
            answer.set()
        message = f"1 model run, 1 instance delivered to RECEIVER@127.0.0.1:{peer.port}"
        assert site.api.await_final(run_id)["message"] == message
        assert told() == {**known, "code": 4, "state": "Completed", "message": message}
