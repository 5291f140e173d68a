"""Requests to process studies again, on a real Prefect server: what is made, how often, and what a person is told."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import ArtifactFilter, ArtifactFilterFlowRunId
from prefect.client.schemas.objects import Artifact, FlowRun, State, StateType
from prefect.exceptions import PrefectHTTPStatusError
from prefect.utilities.callables import parameter_schema

from deployments.stranded_runs import resume_stranded_runs
from dicom_gateway.reprocess import reprocess, withdraw_waiting_runs
from dicom_gateway.run_history import PrefectRunHistory, _request_ids
from flows_engine.flows.process_study import process_study
from flows_engine.handoff.run_claim import is_claimed
from tests import services
from tests.factories import CANARY_NAME, leaked_canaries
from tests.integration.reprocess_site import ReprocessSite
from tests.services import wait_until

pytestmark = pytest.mark.prefect


@pytest.fixture
def site(empty_prefect: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[ReprocessSite]:
    with get_client(sync_client=True) as client:
        site = ReprocessSite(tmp_path, client)
        for name, value in site.environment.items():
            monkeypatch.setenv(name, value)
        site.define("A")
        yield site


def requests(site: ReprocessSite) -> list[FlowRun]:
    return [run for run in site.client.read_flow_runs() if "definition" not in run.parameters]


def artifact_of(site: ReprocessSite, request: FlowRun) -> Artifact:
    (artifact,) = site.client.read_artifacts(
        artifact_filter=ArtifactFilter(flow_run_id=ArtifactFilterFlowRunId(any_=[request.id]))
    )
    return artifact


def test_a_study_runs_again_and_each_run_names_its_reason(site: ReprocessSite):
    study = site.receive()

    state = site.ask(study=study, note="model v2")

    (run,) = site.runs(study)
    (request,) = requests(site)
    assert (state.name, state.message) == ("Completed", f"made A as run {run.id}")
    assert (run.name, run.state_name) == (f"A {study}", "Scheduled")
    assert {"reason:reprocess", f"reprocess:{request.id}", f"study:{study}", "dicomflow"} <= set(run.tags)
    assert (run.work_pool_name, run.work_queue_name) == ("cpu", "priority-0")
    taken = process_study.validate_parameters(run.parameters)
    assert (taken["reason"], taken["note"]) == ("reprocess", "model v2")
    assert site.ledger.study(study).reprocessed[0].flow_run_id == str(run.id)


def test_what_came_of_it_stands_in_a_table_whose_runs_are_links(site: ReprocessSite):
    site.define("B", triggers=[{"Modality": "MR"}])
    study = site.receive()
    site.ask(study=study)

    artifact = artifact_of(site, *requests(site))
    (run,) = site.runs()
    reason = "Modality: none of 3 instances matches 'MR'"
    assert json.loads(str(artifact.data)) == [
        {"study": study, "flow": "A", "what": "made", "run": f"[{run.id}](/runs/flow-run/{run.id})", "reason": ""},
        {"study": study, "flow": "B", "what": "does not match", "run": "", "reason": reason},
    ]
    assert (artifact.key, artifact.type) == ("reprocess", "table")


def test_nothing_of_a_patient_is_told(site: ReprocessSite):
    site.ask(study=site.receive(uids=["1.2.3"]))
    site.ask(study="1.2.3", dry_run=True)
    told = [run.model_dump_json() for run in site.client.read_flow_runs()]
    told += [artifact_of(site, request).model_dump_json() for request in requests(site)]
    assert leaked_canaries("\n".join(told)) == []


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({}, "neither a study nor a span of time is given; name a study, or give since, like 2d"),
        ({"study": "0193e4c2-7a54"}, "there is no study 0193e4c2-7a54; `dicomflow studies` lists"),
        ({"study": "1.2.3"}, "no study of this StudyInstanceUID was received; `dicomflow studies` lists"),
        ({"since": "30d", "flow": "AA"}, "flow: there is no flow 'AA' (did you mean A?)"),
    ],
)
def test_what_cannot_be_done_fails_with_one_line_and_the_way_out(
    site: ReprocessSite, parameters: dict[str, Any], message: str
):
    state = site.ask(**parameters)
    assert state.name == "Failed"
    assert state.message.startswith(message)
    assert len(state.message.splitlines()) == 1
    assert site.runs() == []


def test_a_study_whose_files_are_gone_fails_and_says_so(site: ReprocessSite):
    study = site.receive()
    shutil.rmtree(site.data_dir / "studies" / study / "input")
    state = site.ask(study=study)
    assert (state.name, state.message.partition(" are not in")[0]) == (
        "Failed",
        f"not processed: the files of study {study}",
    )


def test_requests_at_the_same_moment_make_one_run(site: ReprocessSite):
    study = site.receive()
    with ThreadPoolExecutor(4) as pool:
        states = list(pool.map(lambda _: site.ask(study=study), range(4)))
    (run,) = site.runs(study)
    assert {state.name for state in states} == {"Completed"}
    assert all(str(run.id) in state.message for state in states)


def test_a_repeat_runs_again_once_the_first_is_over_and_when_its_history_was_deleted(site: ReprocessSite):
    study = site.receive()
    site.ask(study=study)
    assert "already under way" in site.ask(study=study).message
    site.finish(site.runs(study)[0])

    site.ask(study=study)
    first, second = site.runs(study)
    site.finish(second)
    for run in (second, first):
        site.client.delete_flow_run(run.id)
        site.ask(study=study)
        site.finish(site.runs(study)[-1])

    assert len(site.runs(study)) == 2


def test_in_bulk_runs_wait_in_the_background_and_the_request_until_they_begin(site: ReprocessSite):
    studies = [site.receive() for _ in range(3)]
    site.receive(modality="MR")
    site.receive(outcome="held")

    with ThreadPoolExecutor(1) as pool:
        asked = pool.submit(site.ask, since="2024-01-01")
        wait_until(lambda: len(site.runs()) == 3, seconds=60, what="all runs are made")
        assert not asked.done()
        for run in site.runs():
            site.finish(run)
        state = asked.result(timeout=60)

    assert state.message == "3 runs made for 3 of 4 studies; 1 study matches no flow; passed over: 1 held"
    assert [run.work_queue_name for run in site.runs()] == ["background"] * 3
    assert [run.name for run in site.runs()] == [f"A {study}" for study in studies]


def test_the_background_comes_behind_every_priority_in_every_pool_of_models(site: ReprocessSite):
    for pool in ("cpu", "gpu"):
        queues = site.client.read_work_queues(work_pool_name=pool)
        order = [queue.name for queue in sorted(queues, key=lambda queue: queue.priority or 0)]
        assert order == [*(f"priority-{priority}" for priority in (5, 4, 3, 2, 1, 0)), "background", "default"]


def test_prefect_builds_its_form_from_words_that_a_physicist_understands():
    properties = parameter_schema(reprocess).model_dump_for_openapi()["properties"]
    assert list(properties) == [
        *("study", "since", "until", "flow", "only_matching", "priority", "note", "receptions", "dry_run")
    ]
    for name, field in properties.items():
        assert field["title"][0].isupper(), name
        assert len(field["description"]) > 30, name
    assert properties["priority"]["enum"] == [None, 0, 1, 2, 3, 4, 5]
    assert "no patient data belongs here" in properties["note"]["description"]


def test_a_form_that_is_sent_as_it_comes_is_taken_by_the_server(site: ReprocessSite):
    deployment = site.client.read_deployment_by_name("reprocess/study")
    assert (deployment.work_pool_name, deployment.work_queue_name) == ("gateway", "default")
    empty = {name: field["default"] for name, field in deployment.parameter_openapi_schema["properties"].items()}

    run = site.client.create_flow_run_from_deployment(deployment.id, parameters=empty)

    assert run.parameters == empty


def execute(site: ReprocessSite, run: FlowRun, api_url: str, log: Path) -> subprocess.Popen[bytes]:
    """Start what a worker starts: the process of one flow run."""
    environment = {
        **services.prefect_environment(site.data_dir, api_url=api_url),
        **site.environment,
        "PREFECT__FLOW_RUN_ID": str(run.id),
    }
    with log.open("ab") as output:
        return subprocess.Popen(
            [sys.executable, "-m", "prefect.engine"],
            cwd=services.ROOT,
            env=environment,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )


def worker_starts(site: ReprocessSite) -> None:
    """Do what a worker of the pool does first: have what was cut off go on."""
    resume_stranded_runs(
        site.client,
        pool="gateway",
        worker_name="this-gateway",
        runs_folder=site.data_dir / "runs",
        remove_containers=lambda _: 0,
    )


def test_a_request_in_bulk_that_is_killed_goes_on_and_makes_no_run_twice(
    site: ReprocessSite, empty_prefect: str, tmp_path: Path
):
    studies = [site.receive() for _ in range(20)]
    deployment = site.client.read_deployment_by_name("reprocess/study")
    request = site.client.create_flow_run_from_deployment(deployment.id, parameters={"since": "2024-01-01"})
    log = tmp_path / "engine.log"
    process = execute(site, request, empty_prefect, log)
    try:
        wait_until(lambda: len(site.runs()) >= 3, seconds=120, what="some runs are made")
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    made_before = {run.id for run in site.runs()}
    assert len(made_before) < 20, log.read_text()
    assert site.client.read_flow_run(request.id).state_name == "Running"
    # Some of them are over by the time at which it goes on.
    for run in site.runs()[:2]:
        site.finish(run)

    worker_starts(site)
    assert site.client.read_flow_run(request.id).state_name == "AwaitingRetry"
    process = execute(site, request, empty_prefect, log)
    try:
        wait_until(lambda: len(site.runs()) >= 20, seconds=120, what="all runs are made")
        for run in site.runs():
            site.finish(run)
        assert process.wait(timeout=60) == 0, log.read_text()
    finally:
        process.kill()

    assert sorted(run.parameters["study_id"] for run in site.runs()) == sorted(studies)
    assert made_before <= {run.id for run in site.runs()}
    state = site.client.read_flow_run(request.id).state
    assert (state.name, state.message) == ("Completed", "20 runs made for 20 of 20 studies")
    assert not is_claimed(site.data_dir / "runs" / str(request.id))


def test_cancelling_a_request_withdraws_its_runs_that_have_not_begun(site: ReprocessSite):
    studies = [site.receive() for _ in range(3)]
    for study in studies:
        site.ask(study=study)
    first = requests(site)
    for request in first:
        withdraw_waiting_runs(reprocess, request, State(type=StateType.CANCELLING))
    assert {run.state_name for run in site.runs()} == {"Cancelled"}
    assert {run.state.message for run in site.runs()} == {
        "withdrawn: the request to process its study again was cancelled"
    }


def test_what_waits_of_a_request_that_was_cancelled_while_nobody_could_see_to_it_is_withdrawn_later(
    site: ReprocessSite,
):
    for _ in range(2):
        site.ask(study=site.receive())
    cancelled, other = requests(site)
    site.client.set_flow_run_state(cancelled.id, State(type=StateType.CANCELLED), force=True)

    with PrefectRunHistory(site.client) as history:
        withdrawn = history.withdraw_cancelled()

    assert withdrawn == 1
    states = {next(iter(_request_ids(run))): run.state_name for run in site.runs()}
    assert states == {str(cancelled.id): "Cancelled", str(other.id): "Scheduled"}


def test_what_is_no_study_is_refused_before_prefect_keeps_it(site: ReprocessSite):
    for name, parameter in (("reprocess/study", "study"), ("process-study/A", "study_id")):
        deployment = site.client.read_deployment_by_name(name)
        with pytest.raises(PrefectHTTPStatusError) as refused:
            site.client.create_flow_run_from_deployment(deployment.id, parameters={parameter: CANARY_NAME})
        assert refused.value.response.status_code == 409
    assert site.client.read_flow_runs() == []


def test_a_request_that_was_being_cancelled_when_its_host_went_down_withdraws_its_runs(site: ReprocessSite):
    site.ask(study=site.receive())
    (request,) = requests(site)
    deployment = site.client.read_deployment_by_name("reprocess/study")
    stranded = site.client.create_flow_run_from_deployment(deployment.id)
    site.client.set_flow_run_state(stranded.id, State(type=StateType.RUNNING), force=True)
    site.client.set_flow_run_state(stranded.id, State(type=StateType.CANCELLING, name="Cancelling"), force=True)
    (site.data_dir / "runs" / str(stranded.id)).mkdir(parents=True)
    (site.data_dir / "runs" / str(stranded.id) / "claim").touch()
    told: list[str] = []

    resume_stranded_runs(
        site.client,
        pool="gateway",
        worker_name="this-gateway",
        runs_folder=site.data_dir / "runs",
        remove_containers=lambda _: 0,
        when_cancelled=told.append,
    )

    assert told == [str(stranded.id)]
    assert site.client.read_flow_run(stranded.id).state_name == "Cancelled"
    assert request.id != stranded.id


def test_a_moment_of_a_request_is_that_of_its_making_however_late_it_is_carried_out(site: ReprocessSite):
    site.receive(received_at=datetime(2999, 1, 1, tzinfo=UTC))
    assert site.ask(since="1d").message == "0 runs made for 0 of 0 studies"
