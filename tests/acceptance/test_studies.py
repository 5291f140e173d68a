"""What becomes of studies as they come: one run or several or none, and what a person is told."""

from __future__ import annotations

from pathlib import Path

import pytest

from deployments.demo.studies import data_sets
from tests.acceptance.site import Site, receiver
from tests.factories import ct_series, leaked_canaries
from tests.fakes.store_scp import StoreScp
from tests.fakes.store_scu import association, send

pytestmark = [pytest.mark.docker, pytest.mark.dcmtk, pytest.mark.prefect]

_COPY = "cp -r /input/. /output/"


def test_several_flows_run_on_one_study_each_as_its_own_run(site: Site) -> None:
    for name in ("One", "Two", "Three"):
        site.define(name, f"echo flow {name}")
    site.send(site.study("One", "Two"))
    runs = [site.api.run(site.run_of(name)) for name in ("One", "Two")]
    assert len({run["parameters"]["study_id"] for run in runs}) == 1
    assert {run["parameters"]["definition"]["name"] for run in runs} == {"One", "Two"}
    for run in runs:
        assert site.api.await_final(run["id"])["name"] == "Completed"
    assert site.api.runs("Three") == []


def test_two_patients_of_one_association_are_two_runs_that_see_one_patient_each(site: Site, tmp_path: Path) -> None:
    with receiver(tmp_path) as destination:
        site.define("Patients", _COPY, destinations=[destination])
        studies = [site.study("Patients", count=number, PatientID=f"CANARYID-7315-X-{number}") for number in (2, 3)]
        site.send([file for pair in zip(*studies, strict=False) for file in pair], studies[1][2:])
        runs = site.api.await_runs("Patients", 2)
        messages = {site.api.await_final(run["id"])["message"] for run in runs}
    assert len({run["parameters"]["study_id"] for run in runs}) == 2
    assert {message.split(" instances")[0] for message in messages} == {"1 model run, 2", "1 model run, 3"}
    assert data_sets(tmp_path) == {uid: data for files in studies for uid, data in data_sets(files[0].parent).items()}


def test_results_go_back_to_the_sender_on_the_ports_that_the_flow_names(site: Site) -> None:
    sender = StoreScp()
    with sender.listening():
        site.define("Back", _COPY, return_to_sender_on_port=[sender.port])
        run_id, state = site.send_and_await("Back", count=3)
    assert state["name"] == "Completed"
    assert [task["name"] for task in site.api.task_runs(run_id) if "send" in task["name"]] == [
        f"send to DEMO at 127.0.0.1:{sender.port}"
    ]
    assert len({uid for uid, _, _ in sender.instances}) == 3


def test_a_study_that_matches_nothing_says_why(site: Site) -> None:
    site.define("Wanted", "true")
    before = len(site.study_lines())
    site.send(site.study("Unwanted"))
    line = site.await_decision(more_than=before)
    assert "no-match" in line
    assert "SeriesDescription: none of 2 instances matches" in line or " more" in line
    listed = site.command("studies", "--limit", "1")
    assert (listed.returncode, listed.stdout.splitlines()[1].split()) == (0, line.split())
    explained = site.command("explain", line.split()[0])
    assert explained.returncode == 0
    lines = explained.stdout.splitlines()
    reason = lines[lines.index("Wanted: does not match") + 1]
    assert reason == "  SeriesDescription: none of 2 instances matches ' Wanted$'"
    assert leaked_canaries(line + explained.stdout) == []
    assert site.api.runs("Wanted") == []


def test_an_aborted_association_is_held_until_somebody_releases_it(site: Site) -> None:
    site.define("Held", "true")
    before = len(site.study_lines())
    with association(site.ae_port) as opened:
        for instance in ct_series(3, SeriesDescription="thin Held"):
            assert send(opened, instance) == 0x0000
        opened.abort()
    line = site.await_decision(more_than=before)
    assert " held " in line
    study_id = line.split()[0]
    assert "the association was not released: it ended after 3 instances" in line
    assert f"dicomflow release {study_id}" in line
    assert site.api.runs("Held") == []
    assert site.command("release", study_id).returncode == 0
    assert site.api.await_final(site.run_of("Held"))["name"] == "Completed"
    assert site.command("release", study_id).returncode != 0
