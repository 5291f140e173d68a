"""``dicomflow deploy --write``, as a person types it. No test here has a Prefect server."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import yaml

from tests.services import ROOT

SMALLEST = "triggers: [{Modality: CT}]\nmodels: [{docker_kwargs: {image: hello-world}}]\n"


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder in which the command is typed."""
    folder = tmp_path / "elsewhere"
    folder.mkdir()
    monkeypatch.chdir(folder)
    return folder


def files(folder: Path) -> list[str]:
    return [path.name for path in folder.iterdir()]


def names(file: Path) -> list[str]:
    return [entry["name"] for entry in yaml.safe_load(file.read_text(encoding="utf-8"))["deployments"]]


def test_the_file_lies_in_the_current_folder_and_holds_the_site_s_flows(dicomflow, site, elsewhere):
    (site.flow_directory / "b.yaml").write_text(SMALLEST)
    (site.flow_directory / "a.yaml").write_text(SMALLEST)

    done = dicomflow("deploy", "--write")

    assert (done.returncode, done.stdout, done.stderr) == (0, "prefect.yaml is written: 3 deployments\n", "")
    assert files(elsewhere) == ["prefect.yaml"]
    assert names(elsewhere / "prefect.yaml") == ["a", "b", "study"]
    assert str(site.flow_directory.parent) not in (elsewhere / "prefect.yaml").read_text()


def test_a_second_time_it_is_left_as_it_is_and_a_change_is_written(dicomflow, site, tmp_path):
    file = tmp_path / "site.yaml"
    (site.flow_directory / "a.yaml").write_text(SMALLEST)
    dicomflow("deploy", "--write", str(file))
    before = file.stat()

    assert dicomflow("deploy", "--write", str(file)).stdout == f"{file} is as it would be written: 2 deployments\n"
    assert file.stat().st_mtime_ns == before.st_mtime_ns
    (site.flow_directory / "a.yaml").write_text(SMALLEST + "version: 7\n")
    assert dicomflow("deploy", "--write", str(file)).stdout == f"{file} is written: 2 deployments\n"
    assert "version: '7'" in file.read_text()


def test_checking_writes_nothing_and_says_what_to_do(dicomflow, site, elsewhere):
    (site.flow_directory / "a.yaml").write_text(SMALLEST)
    told = "prefect.yaml is out of date; run: dicomflow deploy --write prefect.yaml\n"

    missing = dicomflow("deploy", "--write", "--check")
    assert (missing.returncode, missing.stderr) == (1, told)
    assert files(elsewhere) == []

    dicomflow("deploy", "--write")
    assert dicomflow("deploy", "--write", "--check").returncode == 0
    (site.flow_directory / "a.yaml").write_text(SMALLEST + "priority: 3\n")
    stale = dicomflow("deploy", "--write", "--check")
    assert (stale.returncode, stale.stderr) == (1, told)
    assert "priority-0" in (elsewhere / "prefect.yaml").read_text()


def test_a_bad_definition_leaves_the_file_as_it_is(dicomflow, site, elsewhere):
    (site.flow_directory / "a.yaml").write_text(SMALLEST)
    dicomflow("deploy", "--write")
    (site.flow_directory / "b.yaml").write_text(SMALLEST + "priority: 9\n")

    done = dicomflow("deploy", "--write")

    assert done.returncode == 1
    problem, consequence = done.stderr.splitlines()
    assert problem.startswith(f"{site.flow_directory}/b.yaml:3: priority: ")
    assert consequence == "prefect.yaml is left as it is, because a flow would be missing from it"
    assert names(elsewhere / "prefect.yaml") == ["a", "study"]


def test_two_files_with_one_name_are_both_named_and_nothing_is_written(dicomflow, site, elsewhere):
    for name in ("first", "second"):
        (site.flow_directory / f"{name}.yaml").write_text("name: Twin\n" + SMALLEST)

    done = dicomflow("deploy", "--write")

    assert done.returncode == 1
    assert all(f"{site.flow_directory}/{name}.yaml" in done.stderr for name in ("first", "second"))
    assert files(elsewhere) == []


def test_a_place_that_cannot_be_written_is_one_line(dicomflow, site, tmp_path):
    (site.flow_directory / "a.yaml").write_text(SMALLEST)

    done = dicomflow("deploy", "--write", str(tmp_path / "missing" / "prefect.yaml"))

    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert "No such file or directory" in line


def test_a_write_that_breaks_off_leaves_what_was_there(dicomflow, site, elsewhere, monkeypatch):
    (site.flow_directory / "a.yaml").write_text(SMALLEST)
    dicomflow("deploy", "--write")
    before = (elsewhere / "prefect.yaml").read_text()
    (site.flow_directory / "b.yaml").write_text(SMALLEST)

    def full(_descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)

    done = dicomflow("deploy", "--write")

    assert done.returncode == 1
    assert "No space left on device" in done.stderr
    assert files(elsewhere) == ["prefect.yaml"]
    assert (elsewhere / "prefect.yaml").read_text() == before


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("--plan", "--write"), "of --plan, --pools and --write, one can be given"),
        (("--pools", "--plan"), "of --plan, --pools and --write, one can be given"),
        (("prefect.yaml",), "FILE and --check belong to --write"),
        (("--check",), "FILE and --check belong to --write"),
    ],
)
def test_what_does_not_go_together_is_refused(dicomflow, elsewhere, arguments, says):
    done = dicomflow("deploy", *arguments)

    assert done.returncode == 2
    assert says in done.stderr
    assert files(elsewhere) == []


def test_the_file_of_this_repository_is_fresh(dicomflow):
    file = ROOT / "prefect.yaml"

    done = dicomflow("deploy", "--write", "--check", str(file), FLOW_DIRECTORY=str(ROOT / "flow_definitions"))

    assert (done.returncode, done.stderr) == (0, "")
