from __future__ import annotations

from uuid import uuid4

import pytest
from prefect.client.schemas.objects import FlowRun

from flows_engine.worker.worker_type import DicomflowJobConfiguration


@pytest.mark.parametrize(
    "name", ["DATA_DIR", "DOCKER_HOST", "DOCKER_KWARGS_ALLOWED", "CONF_DIR", "PYTHONPATH", "LD_PRELOAD", "PATH", "GPUS"]
)
def test_a_run_cannot_say_what_is_the_hosts_to_say(monkeypatch, name):
    monkeypatch.setenv(name, "of the host")
    assert _environment({name: "of a run", "OTHER": "of a run"})[name] == "of the host"
    monkeypatch.delenv(name)
    environment = _environment({name: "of a run", "OTHER": "of a run"})
    assert name not in environment
    assert environment["OTHER"] == "of a run"


def _environment(given):
    configuration = DicomflowJobConfiguration(env=given)
    configuration.prepare_for_flow_run(FlowRun(id=uuid4(), flow_id=uuid4()))
    return configuration.env
