from __future__ import annotations

import os
import re
import socket

import pytest

from deployments.cli import worker
from dicom_gateway.ledger import Decision
from tests.factories import leaked_canaries

SMALLEST = "triggers: [{Modality: CT}]\nmodels: [{docker_kwargs: {image: hello-world}}]\n"


def test_help_names_every_command(dicomflow):
    done = dicomflow("--help")

    assert done.returncode == 0
    for command in (
        "up",
        "demo",
        "gateway",
        "worker",
        "deploy",
        "check",
        "studies",
        "explain",
        "release",
        "reprocess",
        "backtest",
        "runs",
        "queue",
        "priority",
    ):
        assert re.search(rf"^\W+{command} +[A-Z]", done.stdout, re.MULTILINE), command


def test_check_says_of_each_definition_that_it_is_well(dicomflow, site):
    (site.flow_directory / "head.yaml").write_text(SMALLEST)
    (site.flow_directory / "neck.yml").write_text(f"name: Neck\n{SMALLEST}")

    done = dicomflow("check")

    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines() == [
        f"{site.flow_directory}/head.yaml: head is well",
        f"{site.flow_directory}/neck.yml: Neck is well",
    ]


def test_check_tells_file_line_field_and_reason_and_goes_on(dicomflow, site):
    (site.flow_directory / "a.yaml").write_text(f"priorty: 4\n{SMALLEST}")
    (site.flow_directory / "b.yaml").write_text(SMALLEST)

    done = dicomflow("check")

    assert done.returncode == 1
    (problem,) = done.stderr.splitlines()
    assert problem.startswith(f"{site.flow_directory}/a.yaml:1: priorty: ")
    assert "did you mean" in problem
    assert done.stdout == f"{site.flow_directory}/b.yaml: b is well\n"


def test_check_asks_the_site_what_flows_may_ask_of_docker(dicomflow, site):
    (site.flow_directory / "a.yaml").write_text("triggers: []\nmodels: [{docker_kwargs: {image: a, init: true}}]\n")

    done = dicomflow("check")

    assert done.returncode == 1
    assert done.stderr.endswith("who looks after this site can allow it, by DOCKER_KWARGS_ALLOWED: [init])\n")
    assert dicomflow("check", DOCKER_KWARGS_ALLOWED="init").returncode == 0


def test_check_warns_of_what_is_tolerated(dicomflow, site):
    (site.flow_directory / "a.yaml").write_text(
        "triggers: []\nmodels: [{docker_kwargs: {image: a}, static_mounts: ['M:/model:ro']}]\n"
    )

    done = dicomflow("check")

    assert done.returncode == 0
    assert done.stderr.startswith(f"warning: {site.flow_directory}/a.yaml:2: ")


def test_check_looks_at_the_files_that_are_named_only(dicomflow, site, tmp_path):
    (site.flow_directory / "bad.yaml").write_text("[")
    named = tmp_path / "ward 3 (a).yaml"
    named.write_text(SMALLEST)

    assert dicomflow("check", str(named)).stdout == f"{named}: ward 3 (a) is well\n"
    missing = dicomflow("check", str(tmp_path / "missing.yaml"))
    assert missing.returncode == 1
    assert missing.stderr.startswith(str(tmp_path / "missing.yaml"))
    assert len(missing.stderr.splitlines()) == 1


@pytest.mark.parametrize(
    ("environment", "line"),
    [
        ({"AE_PORT": "70000"}, "dicomflow: environment: AE_PORT: "),
        ({"GPUS": "0 0"}, "dicomflow: environment: GPUS: a GPU is named twice"),
        ({"CONF_DIR": "/nowhere/conf.d"}, "dicomflow: environment: CONF_DIR: /nowhere/conf.d is no folder"),
    ],
)
@pytest.mark.parametrize("command", ["up", "gateway", "worker", "deploy", "studies"])
def test_bad_settings_give_one_line_and_exit_1(dicomflow, command, environment, line):
    done = dicomflow(command, **environment)

    assert done.returncode == 1
    assert done.stdout == ""
    (told,) = done.stderr.splitlines()
    assert told.startswith(line)


def test_a_misspelt_setting_of_a_file_is_named_with_its_place(dicomflow, tmp_path):
    (tmp_path / "conf.d").mkdir()
    (tmp_path / "conf.d" / "site.yaml").write_text("AE_PROT: 104\n")

    done = dicomflow("studies", CONF_DIR=str(tmp_path / "conf.d"))

    assert done.returncode == 1
    assert done.stderr == (
        f"dicomflow: {tmp_path}/conf.d/site.yaml:1: AE_PROT: is no setting (did you mean AE_PORT?)\n"
    )


@pytest.mark.parametrize("command", ["deploy", "worker"])
def test_without_a_server_there_is_one_line_with_the_way_out(dicomflow_process, command, free_port):
    done = dicomflow_process(command, PREFECT_API_URL=f"http://127.0.0.1:{free_port}/api")

    assert done.returncode == 1
    assert done.stderr.splitlines() == [
        (
            f"dicomflow: no Prefect server answers at http://127.0.0.1:{free_port}/api/ (ConnectError); "
            "start one with `dicomflow up`, or set PREFECT_API_URL"
        )
    ]


def test_a_worker_of_another_host_keeps_results_where_the_others_find_them(monkeypatch, site):
    told = {}
    monkeypatch.setattr("deployments.worker_service.serve", lambda **_: told.update(os.environ))
    monkeypatch.setattr(os, "environ", {**os.environ, "PREFECT_HOME": "/of/this/host", "DATA_DIR": str(site.data_dir)})
    worker(pool="cpu", name="", slots=1)

    assert told["PREFECT_RESULTS_LOCAL_STORAGE_PATH"] == str(site.data_dir / "prefect" / "storage")


def test_a_worker_keeps_results_where_its_site_says_by_prefects_older_name(monkeypatch, site):
    told = {}
    monkeypatch.setattr("deployments.worker_service.serve", lambda **_: told.update(os.environ))
    of_the_site = {"PREFECT_LOCAL_STORAGE_PATH": "/of/the/site", "DATA_DIR": str(site.data_dir)}
    monkeypatch.setattr(os, "environ", {**os.environ, **of_the_site})
    worker(pool="cpu", name="", slots=1)

    assert told["PREFECT_LOCAL_STORAGE_PATH"] == "/of/the/site"
    assert "PREFECT_RESULTS_LOCAL_STORAGE_PATH" not in told


def test_a_port_that_is_taken_is_named_with_its_setting(dicomflow, site):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        done = dicomflow("up", AE_HOSTNAME="127.0.0.1", AE_PORT=str(port))

    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert line.startswith(f"dicomflow: AE_PORT: 127.0.0.1:{port} cannot be listened on (")
    assert not (site.data_dir / "run").exists()


def test_studies_without_data_is_one_line(dicomflow, tmp_path):
    done = dicomflow("studies", DATA_DIR=str(tmp_path / "nothing"))

    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == f"no study was received yet in {tmp_path / 'nothing'}\n"
    assert not (tmp_path / "nothing").exists()


def test_studies_lists_outcomes_and_explain_says_why(dicomflow, site, ledger, store_study):
    (site.flow_directory / "a.yaml").write_text(SMALLEST.replace("CT", "MR"))
    record = store_study()
    ledger.decide(record.study_id, Decision(outcome="no-match", reason="no flow matches"))

    listed = dicomflow("studies")
    explained = dicomflow("explain", record.study_id)

    assert listed.returncode == explained.returncode == 0
    assert re.search(rf"^{record.study_id} .* 3 +no-match +no flow matches$", listed.stdout.strip(), re.MULTILINE)
    assert "Modality" in explained.stdout
    assert leaked_canaries(listed.stdout + listed.stderr + explained.stdout + explained.stderr) == []


@pytest.mark.parametrize("study_id", ["0193e4c2-7a54-7cc3-98c4-dc0c0c079999", "../../etc", ""])
def test_explain_of_no_study_is_one_line(dicomflow, study_id):
    done = dicomflow("explain", study_id)

    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert line.startswith("dicomflow: ")
    assert "study" in line


def test_explain_of_a_damaged_record_is_one_line_without_what_it_holds(dicomflow, site, store_study):
    record = store_study()
    file = site.data_dir / "studies" / record.study_id / "study.json"
    file.write_text(file.read_text().replace('"instance_count":3', '"instance_count":"three"'))

    done = dicomflow("explain", record.study_id)

    assert done.returncode == 1
    assert len(done.stderr.splitlines()) == 1
    assert leaked_canaries(done.stdout + done.stderr) == []


def test_release_lets_a_held_study_be_matched_again(dicomflow, ledger, store_study):
    record = store_study(complete=False)
    ledger.decide(record.study_id, Decision(outcome="held", reason="it was aborted"))

    assert dicomflow("release", record.study_id).returncode == 0
    assert ledger.undecided() == ((record.study_id, True),)

    again = dicomflow("release", record.study_id)
    assert again.returncode == 1
    assert again.stderr.splitlines() == [
        f"dicomflow: study {record.study_id} is not held; `dicomflow studies` lists those that are"
    ]


def test_an_installation_with_rabbit_is_told_so_and_goes_on(dicomflow, site):
    (site.flow_directory / "a.yaml").write_text(SMALLEST)

    done = dicomflow("check", RABBIT_HOSTNAME="rabbit")

    assert done.returncode == 0
    assert "RABBIT_HOSTNAME: is no longer used" in done.stderr


def test_check_tells_of_two_files_with_one_name(dicomflow, site):
    for name in ("a", "b"):
        (site.flow_directory / f"{name}.yaml").write_text(f"name: Same\n{SMALLEST}")

    done = dicomflow("check")

    assert done.returncode == 1
    assert done.stderr == (
        f"{site.flow_directory}/b.yaml: name: 'Same' is also that of {site.flow_directory}/a.yaml; rename one\n"
    )


def test_check_looks_at_the_files_that_would_be_live(dicomflow, site):
    (site.flow_directory / ".draft.yaml").write_text("[")
    (site.flow_directory / "folder.yaml").mkdir()
    (site.flow_directory / "a.yaml").write_text(SMALLEST)

    done = dicomflow("check")

    assert (done.returncode, done.stdout, done.stderr) == (0, f"{site.flow_directory}/a.yaml: a is well\n", "")


def test_check_tells_of_a_folder_that_is_not_there(dicomflow, site):
    site.flow_directory.rmdir()

    done = dicomflow("check")

    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith(f"dicomflow: FLOW_DIRECTORY: {site.flow_directory} cannot be read: ")


def test_a_mistake_of_ours_shows_its_traceback(dicomflow, monkeypatch):
    def broken(*_: object, **__: object) -> None:
        raise RuntimeError("a bug")

    monkeypatch.setattr("deployments.study_reports.print_studies", broken)

    with pytest.raises(RuntimeError, match="a bug"):
        dicomflow("studies")
