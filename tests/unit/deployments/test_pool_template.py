from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import Callable
from typing import Any
from uuid import uuid4

import pytest
from prefect.client.schemas.objects import FlowRun
from prefect.server.api.validation import _validate_work_pool_job_variables
from prefect.workers.process import ProcessWorker

from deployments.pool_template import JOB_TEMPLATE
from flows_engine.worker.worker_type import DicomflowJobConfiguration


def configuration(**values: object) -> DicomflowJobConfiguration:
    nobody: Any = object()  # the template refers to nothing that Prefect would have to be asked for
    return asyncio.run(DicomflowJobConfiguration.from_template_and_values(JOB_TEMPLATE, values, client=nobody))


def test_a_run_is_executed_by_prefects_engine_and_its_output_is_not_written_to_the_workers_console():
    made = configuration()

    assert (made.stream_output, made.env) == (False, {})
    made.prepare_for_flow_run(FlowRun(flow_id=uuid4()))
    assert made.command == f"{sys.executable} -m prefect.engine"


def test_a_deployment_may_add_to_the_environment_of_its_runs():
    assert configuration(env={"HTTPS_PROXY": "http://proxy"}).env == {"HTTPS_PROXY": "http://proxy"}


def check(template: dict[str, object]) -> None:
    asyncio.run(
        _validate_work_pool_job_variables(
            None, "cpu", template, {}, {}, ignore_required=False, ignore_invalid_defaults=True
        )
    )


def cpu_seconds(work: Callable[[], None]) -> float:
    work()
    began = time.process_time()
    for _ in range(10):
        work()
    return time.process_time() - began


def test_what_prefect_does_with_it_for_every_run_is_a_fraction_of_what_the_workers_own_template_takes():
    own, stock = (
        min(cpu_seconds(lambda template=template: check(template)) for _ in range(3))
        for template in (JOB_TEMPLATE, ProcessWorker.get_default_base_job_template())
    )

    assert own < stock / 2


def test_what_flows_may_do_to_a_host_is_said_by_the_host_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DOCKER_KWARGS_ALLOWED", "init")
    monkeypatch.delenv("CONF_DIR", raising=False)
    given = {"DOCKER_KWARGS_ALLOWED": "privileged", "CONF_DIR": "/tmp/other", "A": "1"}
    made = configuration(env=given)
    made.prepare_for_flow_run(FlowRun(flow_id=uuid4()))
    assert (made.env["DOCKER_KWARGS_ALLOWED"], made.env["A"]) == ("init", "1")
    assert "CONF_DIR" not in made.env
