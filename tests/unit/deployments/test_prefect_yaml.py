"""What ``prefect deploy`` reads of the file, with Prefect's own functions, is what the deployments say."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from prefect.cli.deploy._models import PrefectYamlModel
from prefect.utilities.templating import apply_values, find_placeholders
from rich.console import Console

from deployments import build_step
from deployments.plan import Deployment, desired_deployment, reprocess_deployment
from deployments.prefect_yaml import BUILD_STEP, NameNotForPrefectYamlError, prefect_yaml
from flows_engine.definition.schema import FlowDefinition

OUTPUTS = {"dicomflow": {"braces": "{{", "instance": "0123456789abcdef"}}


def deployment(name: str = "A", **values: Any) -> Deployment:
    document = {"name": name, "triggers": [{"Modality": "CT"}], "models": [{"docker_kwargs": {"image": "busybox"}}]}
    return desired_deployment(FlowDefinition.model_validate({**document, **values}), parameter_schema={})


def as_prefect_reads(text: str) -> list[dict[str, Any]]:
    """Return the entries of a file after all that ``prefect deploy`` does to them."""
    model = PrefectYamlModel.model_validate(yaml.safe_load(text))
    entries = [entry.model_dump(exclude_unset=True, mode="json") for entry in model.deployments]
    before_the_step = apply_values(entries, dict(os.environ), remove_notset=False)
    return apply_values(before_the_step, OUTPUTS, warn_on_notset=True, skip_prefixes=["ctx."])


def test_an_entry_says_all_that_a_deployment_is() -> None:
    wanted = deployment("Thorax", version="1.02", priority=4, concurrency_limit=2)

    (entry,) = as_prefect_reads(prefect_yaml([wanted]))

    assert entry == {
        "name": "Thorax",
        "version": "1.02",
        "version_type": "prefect:simple",
        "description": wanted.description,
        "tags": [*wanted.tags, "instance:0123456789abcdef"],
        "work_pool": {"name": "cpu", "work_queue_name": "priority-4"},
        "concurrency_limit": {"limit": 2, "collision_strategy": "ENQUEUE"},
        "entrypoint": wanted.entrypoint,
        "enforce_parameter_schema": True,
        "paused": False,
        "schedules": [],
        "parameters": wanted.parameters,
    }


def test_what_processes_again_carries_no_installations_tag() -> None:
    (entry,) = as_prefect_reads(prefect_yaml([reprocess_deployment(parameter_schema={})]))

    assert entry["tags"] == ["dicomflow"]


def test_the_order_is_that_of_the_names_and_the_text_is_always_the_same() -> None:
    deployments = [deployment(name) for name in ("b", "A", "a", "ä")]

    text = prefect_yaml(deployments)

    assert text == prefect_yaml(reversed(deployments))
    assert [entry["name"] for entry in yaml.safe_load(text)["deployments"]] == ["A", "a", "b", "ä"]


def test_a_person_can_read_it() -> None:
    lines = prefect_yaml([deployment("A"), deployment("Größe 🩻", version="1.0")]).splitlines()

    assert lines[0].startswith("# Written by `dicomflow deploy --write` ")
    assert "    description: |-" in lines
    assert "      **Runs on a study in which**" in lines
    assert "  - name: Größe 🩻" in lines
    assert "    version: '1.0'" in lines
    assert max(map(len, lines)) < 121
    assert not [line for line in lines if line != line.rstrip()]


def test_all_pools_are_made_before_the_first_deployment_and_nothing_is_pulled() -> None:
    models = [{"docker_kwargs": {"image": "busybox"}, "gpu": "a100"}]

    read = yaml.safe_load(prefect_yaml([deployment(), deployment("B", models=models)]))

    assert read["build"] == [{BUILD_STEP: {"id": "dicomflow", "pools": ["cpu", "gpu", "gpu-a100"]}}]
    assert read["pull"] == []
    assert getattr(build_step, BUILD_STEP.rsplit(".", 1)[1]) is build_step.prepare


def test_without_a_flow_it_is_a_file_that_prefect_reads() -> None:
    assert as_prefect_reads(prefect_yaml([])) == []


_piece = st.sampled_from(
    [*"{} \t\n$.-[]'\"#:|>%@`~\\aB1_é\x85\u2028🩻", "{{", "}}", "{{ x }}", "{{ $HOME }}", "{{ dicomflow.braces }}"]
)
_text = st.lists(_piece, max_size=12).map("".join)


@given(st.lists(_text, min_size=1, max_size=4))
def test_any_text_reaches_prefect_as_it_is(texts: list[str]) -> None:
    wanted = replace(deployment(), description=texts[0], parameters={"of": texts, "in": {"one": texts[-1]}})

    (entry,) = as_prefect_reads(prefect_yaml([wanted]))

    assert entry["description"] == texts[0]
    assert entry["parameters"] == wanted.parameters


@pytest.mark.parametrize("written", ["{{ PATH }}", "{{$HOME}}", "{{ prefect.variables.x }}", "{{ dicomflow.braces }}"])
def test_what_looks_like_a_placeholder_of_prefect_is_not_taken_for_one(written: str) -> None:
    text = prefect_yaml([deployment(models=[{"docker_kwargs": {"image": "a", "command": ["echo", written]}}])])

    assert {found.name for found in find_placeholders(text)} == {"dicomflow.braces", "dicomflow.instance"}
    (entry,) = as_prefect_reads(text)
    assert entry["parameters"]["definition"]["models"][0]["docker_kwargs"]["command"] == ["echo", written]


def test_a_name_that_prefect_would_cut_is_refused() -> None:
    with pytest.raises(NameNotForPrefectYamlError, match=r"'segment\.py'.*ends with \.py"):
        prefect_yaml([deployment("segment.py")])


def test_prefect_itself_finds_nothing_wrong_in_the_file(tmp_path: Path) -> None:
    from prefect.cli.deploy._config import _load_deploy_configs_and_actions

    file = tmp_path / "prefect.yaml"
    file.write_text(prefect_yaml([deployment(), deployment("B")]), encoding="utf-8")
    with (tmp_path / "said").open("w+") as said:
        configs, actions = _load_deploy_configs_and_actions(file, console=Console(file=said))
        said.seek(0)
        assert said.read() == ""

    assert [config["name"] for config in configs] == ["A", "B"]
    # None would be a folder of this machine, in every deployment.
    assert actions["pull"] == []
