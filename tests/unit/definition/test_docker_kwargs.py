"""What a flow may ask of Docker, and what it may not."""

from __future__ import annotations

from typing import Any

import docker.models.containers
import pytest
from docker.utils import parse_bytes, split_command
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from flows_engine.definition.allowable_kwargs import ALLOWABLE
from flows_engine.definition.docker_kwargs import NEVER_ALLOWED, DockerKwargs, allowable, reason_for_refusal


def kwargs(**values: Any) -> DockerKwargs:
    return DockerKwargs.model_validate({"image": "busybox", **values})


@pytest.mark.parametrize("name", sorted(NEVER_ALLOWED))
def test_what_no_site_may_allow_is_refused(name: str) -> None:
    with pytest.raises(ValidationError) as caught:
        kwargs(**{name: "host"})

    assert [error["type"] for error in caught.value.errors()] == ["extra_forbidden"]


def test_nothing_is_both_allowed_and_refused() -> None:
    assert not NEVER_ALLOWED.keys() & DockerKwargs.model_fields.keys()


def test_each_argument_of_docker_py_is_taken_or_refused_with_a_reason() -> None:
    known = {*docker.models.containers.RUN_CREATE_KWARGS, *docker.models.containers.RUN_HOST_CONFIG_KWARGS}

    assert known - DockerKwargs.model_fields.keys() - NEVER_ALLOWED.keys() == set()


@pytest.mark.parametrize("name", sorted(ALLOWABLE))
def test_what_a_site_may_allow_says_how(name: str) -> None:
    assert allowable(name) == name
    assert f"DOCKER_KWARGS_ALLOWED: [{name}]" in str(reason_for_refusal(name))


@pytest.mark.parametrize("name", sorted(NEVER_ALLOWED))
def test_what_no_site_may_allow_says_why(name: str) -> None:
    with pytest.raises(ValueError, match=f"^{name} can never be allowed: .{{10,}}"):
        allowable(name)


def test_every_allowed_argument_is_one_of_docker_py() -> None:
    known = {*docker.models.containers.RUN_CREATE_KWARGS, *docker.models.containers.RUN_HOST_CONFIG_KWARGS}

    # Taken by `containers.create` itself.
    assert set(DockerKwargs.model_fields) - {"network"} <= known


def test_only_what_was_set_is_handed_on_without_image_and_network() -> None:
    given = kwargs(
        command=["sh", "-c", "x"], environment={"A": 0}, mem_limit="8g", network_disabled=False, read_only=True
    )

    assert given.create_options() == {
        "command": ["sh", "-c", "x"],
        "environment": {"A": "0"},
        "mem_limit": "8g",
        "read_only": True,
    }
    assert kwargs().create_options() == {}


@pytest.mark.parametrize("network_disabled", [True, "true", "yes"])
def test_a_container_has_no_network_by_default(network_disabled: object) -> None:
    assert kwargs().network_disabled is kwargs(network_disabled=network_disabled).network_disabled is True
    assert kwargs(network_disabled="false").network_disabled is False


def test_an_environment_may_be_a_list() -> None:
    assert kwargs(environment=["A=1", "B=x=y", "C="]).environment == {"A": "1", "B": "x=y", "C": ""}


@pytest.mark.parametrize(
    "environment",
    [
        ["A"],
        {"A=B": "1"},
        {"": "1"},
        {"A": "x\0"},
        {"A": None},
        "A=1",
        {"NVIDIA_VISIBLE_DEVICES": "all"},
        [None],
        [["A=1"]],
        ["A=1", "A=2"],
        {"A B": "1"},
        {"A\n": "1"},
    ],
)
def test_an_environment_that_means_nothing_or_takes_gpus_is_refused(environment: object) -> None:
    with pytest.raises(ValidationError):
        kwargs(environment=environment)


@pytest.mark.parametrize(
    "image", ["busybox", "registry.example:5000/team/model:1.2", "a/b@sha256:" + "0" * 64, "model_1.x"]
)
def test_references_of_images_are_taken(image: str) -> None:
    assert kwargs(image=image).image == image


@pytest.mark.parametrize("image", ["", " ", "-x", "a b", "a;b", "$(x)", "../x", "a\nb", None])
def test_what_is_no_reference_is_refused(image: object) -> None:
    with pytest.raises(ValidationError):
        kwargs(image=image)


@pytest.mark.parametrize("size", ["8g", "512m", "1.5G", "1024", "64kb", 1024])
def test_a_size_is_one_that_docker_py_understands(size: object) -> None:
    assert parse_bytes(kwargs(mem_limit=size).mem_limit) > 0


@pytest.mark.parametrize("size", ["8 gigabytes", "-1", "g", "", True, "1e9", "\u0661"])
def test_what_is_no_size_is_refused(size: object) -> None:
    with pytest.raises(ValidationError):
        kwargs(mem_limit=size)


def test_swap_may_be_unlimited() -> None:
    assert parse_bytes(kwargs(memswap_limit=-1).memswap_limit) == -1


def test_a_command_is_one_that_docker_py_can_split() -> None:
    command = kwargs(command="sh -c 'echo $A; cp -r /input/. /output/'").command

    assert split_command(str(command)) == ["sh", "-c", "echo $A; cp -r /input/. /output/"]
    with pytest.raises(ValidationError, match="quote"):
        kwargs(command="sh -c 'echo")


@pytest.mark.parametrize(
    "values",
    [
        {"working_dir": "app"},
        {"tmpfs": {"scratch": ""}},
        {"tmpfs": {"/scratch": "exec,bind=/etc"}},
        {"labels": {"dicomflow.run": "x"}},
        {"mem_swappiness": 101},
        {"nano_cpus": 0},
        {"command": ["a", None]},
        {"command": "a\0b"},
        {"entrypoint": ["a", "b\0"]},
        {"command": {"a": "b"}},
        {"tmpfs": {"/proc/x": ""}},
        {"tmpfs": {"/a/../b": ""}},
        {"working_dir": "/app\n"},
        {"user": "a b"},
        {"user": ""},
        {"user": "a:b:c"},
        {"user": "-1"},
        {"cpuset_cpus": "all"},
        {"cpuset_cpus": ""},
        {"nano_cpus": 2**63},
        {"cpu_quota": -(2**63)},
        {"cpu_shares": -1},
        {"read_only": "maybe"},
        {"labels": {"a": "b\0"}},
    ],
)
def test_values_that_the_engine_would_not_take_or_that_are_ours_are_refused(values: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        kwargs(**values)


def test_a_memory_folder_with_options_is_taken() -> None:
    assert kwargs(tmpfs={"/scratch": "size=1g,mode=1777"}).create_options()["tmpfs"] == {
        "/scratch": "size=1g,mode=1777"
    }


@given(size=st.from_regex(r"[0-9.]{1,20} ?[bkmgt]{0,2}", fullmatch=True))
def test_every_size_that_is_taken_is_one_for_docker_py(size: str) -> None:
    try:
        taken = kwargs(mem_limit=size).mem_limit
    except ValidationError:
        return
    assert 0 <= parse_bytes(taken) < 2**110


@pytest.mark.parametrize("user", [0, "1000", "1000:1000", "nobody", "model_user:staff", "a.b-c"])
def test_a_user_may_be_a_number_or_a_name(user: object) -> None:
    assert kwargs(user=user).create_options()["user"] == str(user)


@pytest.mark.parametrize("cpus", ["0", 3, "0-3", "0,2,5-7"])
def test_processors_may_be_listed(cpus: object) -> None:
    assert kwargs(cpuset_cpus=cpus).cpuset_cpus == str(cpus)


@pytest.mark.parametrize("field", ["environment", "labels", "tmpfs"])
def test_a_name_that_prefect_takes_for_a_template_is_refused(field: str):
    with pytest.raises(ValidationError, match="'__prefect_kind' is a name that Prefect keeps for itself"):
        DockerKwargs.model_validate({"image": "busybox", field: {"__prefect_kind": "jinja", "template": "{{ 7*7 }}"}})
