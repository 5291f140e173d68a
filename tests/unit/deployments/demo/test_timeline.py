from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import Any

import pytest

from deployments.demo.timeline import read_runs

RUN = {
    "id": "run-1",
    "name": "Flow 0193",
    "created": "2024-05-06T07:09:02+00:00",
    "parameters": {"study_id": "0193e4c2-7a54-7cc3-98c4-dc0c0c079999"},
    "state": {"type": "RUNNING", "name": "Sending", "message": None, "timestamp": "2024-05-06T07:09:09+00:00"},
}
TASKS = [
    {
        "name": "send to A",
        "state_name": "Running",
        "start_time": "2024-05-06T07:09:08+00:00",
        "end_time": None,
    },
    {
        "name": "model 1",
        "state_name": "Completed",
        "start_time": "2024-05-06T07:09:04+00:00",
        "end_time": "2024-05-06T07:09:07+00:00",
    },
    {"name": "model 2", "state_name": "Pending", "start_time": None, "end_time": None},
]


@pytest.fixture
def api() -> Iterator[dict[str, Any]]:
    """What a Prefect API answers, by path; the key ``url`` is where it is."""
    answers: dict[str, Any] = {}

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["Content-Length"]))
            self.send_response(200)
            self.end_headers()
            self.wfile.write(json.dumps(answers[self.path]).encode())

        def log_message(self, *_: object) -> None:
            """Say nothing."""

    server = HTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    answers["url"] = f"http://127.0.0.1:{server.server_port}"
    yield answers
    server.shutdown()
    thread.join()
    server.server_close()


def test_what_happened_is_told_in_the_order_of_time(api, site):
    api |= {"/flow_runs/filter": [RUN], "/task_runs/filter": TASKS}

    (run,) = read_runs(api["url"], data_dir=site.data_dir)

    assert [moment.what for moment in run.moments] == [
        "queued",
        "model 1 started",
        "model 1 Completed",
        "send to A started",
    ]
    assert (run.state, run.message, run.finished) == ("Sending", "", False)


@pytest.mark.parametrize("final", ["COMPLETED", "FAILED", "CRASHED", "CANCELLED"])
def test_a_run_that_is_over_ends_with_its_state(api, site, final):
    state = {**RUN["state"], "type": final, "name": final.title(), "message": "one line"}
    api |= {"/flow_runs/filter": [{**RUN, "state": state}], "/task_runs/filter": TASKS}

    (run,) = read_runs(api["url"], data_dir=site.data_dir)

    assert run.finished
    assert run.message == "one line"
    assert run.moments[-1].what == f"run {final.title()}"


def test_the_gateways_part_comes_from_its_ledger(api, site, store_study):
    record = store_study()
    parameters = {"study_id": record.study_id}
    api |= {"/flow_runs/filter": [{**RUN, "parameters": parameters}], "/task_runs/filter": []}

    (run,) = read_runs(api["url"], data_dir=site.data_dir)

    told = {moment.what for moment in run.moments}
    assert {"receiving", "received: 3 instances are on disk"} <= told
    assert "matched" not in told


def test_no_runs_are_no_summaries(api, site):
    api["/flow_runs/filter"] = []

    assert read_runs(api["url"], data_dir=site.data_dir) == []
