from __future__ import annotations

from pathlib import Path
from typing import Any

from flows_engine.container_spec import Origin, container_spec
from flows_engine.definition.schema import FlowDefinition
from flows_engine.interfaces import BindMount, ContainerSpec
from flows_engine.workspace import StepFolders

ORIGIN = Origin(run_id="run-1", study_id="study-1", instance_id="site-1")
# Those of the first model of a row, of the second, and of the only one.
FOLDERS = StepFolders(inputs={"src": Path("/data/in"), "model-1": Path("/data/in")}, outputs={"dst": Path("/data/out")})


def _spec(
    docker_kwargs: dict[str, Any], *, step: int = 0, gpu_ids: tuple[str, ...] = ("2",), **model: Any
) -> ContainerSpec:
    first = {"docker_kwargs": {"image": "first"}}
    models = [{"docker_kwargs": {"image": "busybox", **docker_kwargs}, **model}]
    definition = FlowDefinition.model_validate(
        {"name": "Fancy", "version": "1.02", "triggers": [], "models": [first] * step + models}
    )
    static = BindMount(source=Path("/static/m"), target="/model", read_only=True)
    return container_spec(
        definition,
        step=step,
        folders=FOLDERS,
        origin=ORIGIN,
        gpu_ids=gpu_ids,
        gpu_lease="lease-1",
        static_mounts=[static],
    )


def test_input_is_read_only_output_is_not_and_static_mounts_follow() -> None:
    assert [(str(m.source), m.target, m.read_only) for m in _spec({}).mounts] == [
        ("/data/in", "/input", True),
        ("/data/out", "/output", False),
        ("/static/m", "/model", True),
    ]


def test_a_writable_input_is_the_models_wish() -> None:
    assert [mount.read_only for mount in _spec({}, input_writable=True).mounts] == [False, False, True]


def test_no_network_unless_the_flow_says_so() -> None:
    assert _spec({}).network is False
    assert _spec({"network_disabled": False}).network is True


def test_limits_that_no_flow_lifts() -> None:
    options = _spec({"mem_limit": "2g"}).options
    assert options["security_opt"] == ["no-new-privileges"]
    assert options["pids_limit"] == 4096
    assert options["log_config"] == {"type": "json-file", "config": {"max-size": "10m", "max-file": "2"}}
    assert options["mem_limit"] == "2g"


def test_the_environment_says_what_runs_and_ours_wins() -> None:
    assert _spec({"environment": {"CONTAINER_ORDER": 0, "DICOMFLOW_RUN": "mine"}}).options["environment"] == {
        "CONTAINER_ORDER": "0",
        "DICOMFLOW_STUDY": "study-1",
        "DICOMFLOW_RUN": "run-1",
        "DICOMFLOW_FLOW": "Fancy",
        "DICOMFLOW_VERSION": "1.02",
        "NVIDIA_VISIBLE_DEVICES": "2",
    }


def test_a_model_without_a_gpu_sees_none_even_where_its_image_asks_for_all() -> None:
    environment = _spec({}, gpu_ids=()).options["environment"]
    assert isinstance(environment, dict)
    assert environment["NVIDIA_VISIBLE_DEVICES"] == "void"


def test_labels_and_name_tell_whose_container_it_is() -> None:
    spec = _spec({"labels": {"team": "a"}}, step=1)
    assert spec.name == "dicomflow-run-1-2"
    assert spec.labels == {
        "team": "a",
        "dicomflow.run": "run-1",
        "dicomflow.study": "study-1",
        "dicomflow.step": "2",
        "dicomflow.task": "run-1/2",
        "dicomflow.instance": "site-1",
        "dicomflow.gpus": "2",
        "dicomflow.lease": "lease-1",
    }
    assert "labels" not in spec.options


def test_two_gpus_are_seen_and_labelled_and_none_leave_no_label() -> None:
    spec = _spec({}, gpu_ids=("0", "GPU-8f"))
    assert spec.gpu_ids == ("0", "GPU-8f")
    assert spec.labels["dicomflow.gpus"] == "0,GPU-8f"
    assert spec.options["environment"]["NVIDIA_VISIBLE_DEVICES"] == "0,GPU-8f"  # type: ignore[index]
    assert not {"dicomflow.gpus", "dicomflow.lease"} & _spec({}, gpu_ids=()).labels.keys()


def test_the_rest_is_handed_on() -> None:
    spec = _spec({}, timeout=2, pull_before_exec=False)
    assert (spec.image, spec.timeout_seconds, spec.pull, spec.gpu_ids) == ("busybox", 2, False, ("2",))


def test_each_name_of_a_graph_has_its_place(tmp_path: Path) -> None:
    fold = {"docker_kwargs": {"image": "fold"}, "input_mounts": {"src": "/in"}, "output_mounts": {"seg": "/out"}}
    merge = {
        "docker_kwargs": {"image": "merge"},
        "input_mounts": {"seg": "/seg", "src": "/ct"},
        "output_mounts": {"dst": "/result", "log": "/log"},
        "input_writable": True,
    }
    definition = FlowDefinition.model_validate({"name": "Folds", "triggers": [], "models": [fold, merge]})
    folders = StepFolders(
        inputs={name: tmp_path / name for name in ("seg", "src")},
        outputs={name: tmp_path / name for name in ("dst", "log")},
    )
    spec = container_spec(definition, step=1, folders=folders, origin=ORIGIN)
    assert [(mount.source.name, mount.target, mount.read_only) for mount in spec.mounts] == [
        ("seg", "/seg", False),
        ("src", "/ct", False),
        ("dst", "/result", False),
        ("log", "/log", False),
    ]


def test_a_config_has_a_place_of_its_own(tmp_path: Path) -> None:
    definition = FlowDefinition.model_validate(
        {"name": "A", "triggers": [], "models": [{"docker_kwargs": {"image": "a"}, "config": {"x": 1}}]}
    )
    folders = StepFolders(inputs=FOLDERS.inputs, outputs=FOLDERS.outputs, config=tmp_path / "config")
    mount = container_spec(definition, step=0, folders=folders, origin=ORIGIN).mounts[-1]
    assert (mount.source, mount.target, mount.read_only) == (tmp_path / "config", "/config", True)


def test_the_sites_memory_limit_is_for_flows_that_have_none() -> None:
    def limit(docker_kwargs: dict[str, Any], default: str | None) -> object:
        definition = FlowDefinition.model_validate(
            {"name": "A", "triggers": [], "models": [{"docker_kwargs": {"image": "a", **docker_kwargs}}]}
        )
        spec = container_spec(definition, step=0, folders=FOLDERS, origin=ORIGIN, default_mem_limit=default)
        return spec.options.get("mem_limit")

    assert [limit({}, None), limit({}, "2g"), limit({"mem_limit": "8g"}, "2g")] == [None, "2g", "8g"]


def test_what_the_site_allows_is_handed_on() -> None:
    options = _spec({"cap_add": ["SYS_NICE"], "pids_limit": 100, "network_disabled": False, "network": "x"}).options
    assert (options["cap_add"], options["pids_limit"], options["network"]) == (["SYS_NICE"], 100, "x")


def test_no_privileges_are_gained_unless_they_are_asked_for() -> None:
    def security(docker_kwargs: dict[str, Any]) -> object:
        return _spec(docker_kwargs).options["security_opt"]

    assert security({"cap_add": "SYS_NICE", "privileged": False}) == ["no-new-privileges"]
    assert security({"security_opt": "seccomp=unconfined"}) == ["seccomp=unconfined", "no-new-privileges"]
    assert security({"security_opt": "no-new-privileges:false"}) == ["no-new-privileges:false"]
    assert security({"privileged": True}) == []


def test_a_gpu_that_is_not_held_is_not_shown_whatever_the_runtime() -> None:
    environment = _spec({"runtime": "nvidia", "privileged": True}, gpu_ids=()).options["environment"]
    assert isinstance(environment, dict)
    assert environment["NVIDIA_VISIBLE_DEVICES"] == "void"
