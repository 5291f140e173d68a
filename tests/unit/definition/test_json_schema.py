"""The schema for editors: fresh, valid, and neither stricter nor blinder than the loader where an author types."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml
from pydantic import BaseModel

from flows_engine.definition.docker_kwargs import DockerKwargs
from flows_engine.definition.errors import DefinitionError
from flows_engine.definition.expect import Expect
from flows_engine.definition.json_schema import SCHEMA_FILE, flow_schema, main
from flows_engine.definition.loading import load_definition
from flows_engine.definition.schema import FlowDefinition, Model, Node

ROOT = Path(__file__).parents[3]
EXAMPLES = sorted((ROOT / "flow_definitions").glob("*.yaml"))
SMALLEST: dict[str, Any] = {"triggers": [], "models": [{"docker_kwargs": {"image": "a"}}]}


def test_the_file_in_the_repository_is_fresh() -> None:
    assert json.loads((ROOT / SCHEMA_FILE).read_text(encoding="utf-8")) == flow_schema()


def test_check_says_whether_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    SCHEMA_FILE.parent.mkdir()

    assert main(["--check"]) == 1
    assert "out of date" in capsys.readouterr().err
    assert main([]) == 0
    assert main(["--check"]) == 0


def test_it_is_a_schema() -> None:
    jsonschema.Draft202012Validator.check_schema(flow_schema())


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.name)
def test_an_example_is_well_and_points_at_the_schema(path: Path) -> None:
    text = path.read_text(encoding="utf-8")

    assert text.startswith("# yaml-language-server: $schema=./flow.schema.json\n")
    assert load_definition(path).warnings == ()
    jsonschema.validate(yaml.safe_load(text), flow_schema())


def test_the_examples_are_there_and_only_two_of_them_run_by_themselves() -> None:
    names = {path.stem: load_definition(path).definition for path in EXAMPLES}

    assert sorted(names) == ["five-folds", "smallest", "static-mounts", "two-containers"]
    assert [stem for stem, definition in sorted(names.items()) if definition.triggers] == ["smallest", "two-containers"]
    two = names["two-containers"]
    assert [model.docker_kwargs.environment["CONTAINER_ORDER"] for model in two.models] == ["0", "1"]


@pytest.mark.parametrize(
    "values",
    [
        {"version": 1.02, "priority": "4", "name": True},
        {"triggers": {"Modality": ["CT", 1]}, "destinations": {"host": "h", "port": "104", "ae_title": 1}},
        {"triggers": [{"Modality": "CT", "min_instances": 40}, {"Sender.Host": "x", "min_instances": "2"}]},
        {"triggers": [{"Modality": "CT"}], "input": "matched", "tar_subdir": "Modality"},
        {"tar_subdir": ["Modality", "SeriesInstanceUID"]},
        {"tar_subdir": []},
        {"return_to_sender_on_port": 10002},
        {"expect": {"min_files": "5", "dicom_only": "yes", "same_patient": False, "modality": "RTSTRUCT"}},
        {"expect": {"modality": ["RTSTRUCT", "SEG"]}},
        {
            "models": [
                {"docker_kwargs": {"image": "a", "environment": {"A": 0, "B": True}}, "gpu": "False", "timeout": "2"}
            ]
        },
        {"models": [{"docker_kwargs": {"image": "a", "environment": ["A=1"]}, "static_mount": "X:/m"}]},
        {"models": [{"docker_kwargs": {"image": "a"}, "gpu": 2, "gpu_memory": 8000}]},
        {"models": [{"docker_kwargs": {"image": "a"}, "gpu": "2", "gpu_memory": "8000"}]},
    ],
)
def test_what_the_loader_takes_is_not_marked_red(tmp_path: Path, values: dict[str, Any]) -> None:
    path = tmp_path / "flow.yaml"
    path.write_text(yaml.safe_dump({**SMALLEST, **values}))

    load_definition(path)
    jsonschema.validate({**SMALLEST, **values}, flow_schema())


@pytest.mark.parametrize(
    "values",
    [
        {"priority": 9},
        {"priorty": 1},
        {"triggers": [{}]},
        {"models": []},
        {"models": [{"docker_kwargs": {"image": "a", "mounts": True}}]},
        {"models": [{"docker_kwargs": {"image": "a", "ulimits": [{"name": "nofile"}]}}]},
        {"models": [{"docker_kwargs": {}}]},
        {"destinations": [{"host": "h"}]},
        {"destinations": "localhost"},
        {"name": "x" * 201},
        {"name": ["x"]},
        {"triggers": None},
        {"triggers": "CT"},
        {"triggers": [{"Modality": []}]},
        {"tar_subdir": ["Modality"] * 11},
        {"triggers": [{"Modality": "CT", "min_instances": 0}]},
        {"triggers": [{"Modality": {"a": "b"}}]},
        {"models": ["busybox"]},
        {"models": [{"docker_kwargs": "busybox"}]},
        {"models": [{"docker_kwargs": {"image": "a"}, "timeout": 0}]},
        {"models": [{"docker_kwargs": {"image": "a"}, "gpu": [0]}]},
        {"models": [{"docker_kwargs": {"image": "a"}, "gpu": True, "gpu_memory": 0}]},
        {"models": [{"docker_kwargs": {"image": "a"}, "static_mounts": ["X"]}]},
        {"models": [{"docker_kwargs": {"image": "a"}, "static_mounts": [{"X": "/m"}]}]},
        {"models": [{"docker_kwargs": {"image": "a", "environment": ["A"]}}]},
        {"models": [{"docker_kwargs": {"image": "a", "mem_swappiness": 101}}]},
        {"return_to_sender_on_port": [0]},
        {"expect": "same_patient"},
        {"expect": {"same_pateint": True}},
        {"expect": {"min_files": -1}},
        {"expect": {"modality": []}},
    ],
)
def test_what_is_marked_red_is_refused_by_the_loader_too(tmp_path: Path, values: dict[str, Any]) -> None:
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate({**SMALLEST, **values}, flow_schema())
    path = tmp_path / "flow.yaml"
    path.write_text(yaml.safe_dump({**SMALLEST, **values}))
    with pytest.raises(DefinitionError):
        load_definition(path)


def test_the_flow_that_the_reference_shows_is_well(tmp_path: Path) -> None:
    reference = (ROOT / "flow_definitions" / "README.md").read_text(encoding="utf-8")
    shown = reference.split("```yaml\n")[1].split("```")[0]
    path = tmp_path / "flow.yaml"
    path.write_text(shown)

    assert load_definition(path).warnings == ()
    jsonschema.validate(yaml.safe_load(shown), flow_schema())


@pytest.mark.parametrize("kind", [FlowDefinition, Model, DockerKwargs, Node, Expect])
def test_the_reference_names_every_key(kind: type[BaseModel]) -> None:
    reference = (ROOT / "flow_definitions" / "README.md").read_text(encoding="utf-8")

    assert [name for name in kind.model_fields if f"`{name}`" not in reference] == []
