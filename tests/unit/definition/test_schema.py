"""A definition as a value: what it may hold, and that it stays itself on its way through YAML, JSON and Prefect."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from prefect.utilities.callables import parameter_schema
from prefect.utilities.schema_tools.validation import is_valid_schema, validate
from pydantic import ValidationError

from flows_engine.definition.expect import Expect
from flows_engine.definition.loading import load_definition
from flows_engine.definition.schema import FlowDefinition, Model, Node, StaticMount


def keys(**values: Any) -> dict[str, Any]:
    return {"name": "x", "triggers": [], "models": [{"docker_kwargs": {"image": "a"}}], **values}


def flow(**values: Any) -> FlowDefinition:
    return FlowDefinition.model_validate(keys(**values))


def model(**values: Any) -> Model:
    return Model.model_validate({"docker_kwargs": {"image": "a"}, **values})


_text = st.text(
    st.characters(blacklist_categories=("Cs", "Cc"), blacklist_characters="\x85\u2028\u2029\ufeff\ufffe\uffff"),
    max_size=8,
)
_name = st.from_regex(r"[A-Za-z0-9][A-Za-z0-9 ._-]{0,20}[A-Za-z0-9]", fullmatch=True)
_word = st.from_regex(r"[a-z][a-z0-9_]{0,8}", fullmatch=True)
_pattern = st.builds(
    lambda tilde, text: tilde + text,
    st.sampled_from(["", "~"]),
    st.sampled_from(["CT", "a|b", "^1$", r"\d+", "NO", "1.10", "0x1", "ä"]),
)
_tag = st.sampled_from(["Modality", "SeriesDescription", "00080018", "(0008,1030)", "00091001"])
_trigger = st.dictionaries(
    _tag, st.one_of(_pattern, st.lists(_pattern, min_size=1, max_size=3)), min_size=1, max_size=3
)
_kwargs = st.fixed_dictionaries(
    {"image": st.sampled_from(["busybox", "registry.example:5000/a/b:1.0"])},
    optional={
        "command": st.one_of(_word, st.lists(_text, max_size=3)),
        "environment": st.dictionaries(_word, _text, max_size=3),
        "mem_limit": st.sampled_from(["8g", "1024"]),
        "labels": st.dictionaries(_word, _text, max_size=2),
        "tmpfs": st.just({"/scratch": "size=1g"}),
        "network_disabled": st.booleans(),
        "cpu_quota": st.integers(1000, 10**6),
        "user": st.sampled_from(["1000", "1000:1000"]),
    },
)
_model = st.fixed_dictionaries(
    {"docker_kwargs": _kwargs},
    optional={
        "gpu": st.one_of(st.booleans(), st.just("a100"), st.integers(1, 8)),
        "input_dir": st.sampled_from(["/in", "/input/", "/data/in"]),
        "pull_before_exec": st.booleans(),
        "input_writable": st.booleans(),
        "timeout": st.one_of(st.integers(1, 10**6), st.floats(0.5, 1000)),
        "static_mounts": st.lists(st.sampled_from(["X:/model", "a/b.tar.gz:/model", "Y:/other"]), max_size=3),
    },
)
_node = st.fixed_dictionaries(
    {
        "host": st.sampled_from(["localhost", "10.0.0.1", "::1"]),
        "port": st.integers(1, 65535),
        "ae_title": st.sampled_from(["A", "MY AE 1"]),
    }
)
_expect = st.fixed_dictionaries(
    {},
    optional={
        "min_files": st.integers(0, 100),
        "dicom_only": st.booleans(),
        "same_patient": st.booleans(),
        "same_study": st.booleans(),
        "references_exist": st.booleans(),
        "modality": st.one_of(st.just("CT"), st.lists(st.sampled_from(["RTSTRUCT", "SEG"]), min_size=1, max_size=2)),
    },
)
_flow = st.fixed_dictionaries(
    {"name": _name, "triggers": st.lists(_trigger, max_size=3), "models": st.lists(_model, min_size=1, max_size=3)},
    optional={
        "version": _text.filter(str.isprintable),
        "priority": st.integers(0, 5),
        "concurrency_limit": st.integers(1, 100),
        "destinations": st.lists(_node, max_size=2),
        "return_to_sender_on_port": st.lists(st.integers(1, 65535), max_size=2),
        "expect": _expect,
    },
)


_SCHEMA = jsonschema.Draft202012Validator(FlowDefinition.model_json_schema())


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(values=_flow)
def test_a_definition_survives_yaml_value_json_value(tmp_path: Path, values: dict[str, Any]) -> None:
    path = tmp_path / "flow.yaml"
    path.write_text(yaml.safe_dump(values, allow_unicode=True, sort_keys=False), encoding="utf-8")

    read = load_definition(path).definition
    plain = read.model_dump(mode="json")

    assert FlowDefinition.model_validate(values) == read
    assert FlowDefinition.model_validate(plain) == read
    without_none = FlowDefinition.model_validate(read.model_dump(mode="json", exclude_none=True))
    assert (without_none, without_none.digest) == (read, read.digest)
    assert FlowDefinition.model_validate_json(read.model_dump_json()) == read
    assert FlowDefinition.model_validate(plain).digest == read.digest
    _SCHEMA.validate(plain)


def test_prefect_makes_a_valid_parameter_schema_of_it_and_accepts_the_plain_form() -> None:
    def process(definition: FlowDefinition) -> None: ...

    schema = parameter_schema(process).model_dump()
    definition = flow(
        triggers=[{"Modality": "CT"}],
        models=[{"docker_kwargs": {"image": "a"}, "gpu": "a100", "static_mounts": ["X:/m"]}],
        destinations=[{"host": "h", "port": 1, "ae_title": "A"}],
    )

    assert is_valid_schema(schema) is None
    assert validate({"definition": definition.model_dump(mode="json")}, schema, raise_on_error=False) == []
    assert validate({"definition": {"name": "x"}}, schema, raise_on_error=False) != []


def test_the_digest_is_of_what_is_said_not_of_how(write_flow: Any) -> None:
    one = load_definition(write_flow("triggers: []\nmodels: [{docker_kwargs: {image: a}}]\n")).definition
    same = load_definition(write_flow("# x\nmodels:\n- docker_kwargs:\n    image: 'a'\ntriggers: []\n")).definition
    other = load_definition(write_flow("triggers: []\nmodels: [{docker_kwargs: {image: b}}]\n")).definition

    assert one.digest == same.digest != other.digest
    assert len(one.digest) == 64
    assert "digest" not in one.model_dump()


def test_the_digest_of_a_definition_does_not_change_with_the_program() -> None:
    """Runs that wait in a ledger are created once under a key that holds it, by whichever version comes next."""
    plain = FlowDefinition.model_validate({"name": "a", "triggers": [], "models": [{"docker_kwargs": {"image": "x"}}]})

    assert plain.digest == "72f3bd19ee18fd83370754e20b1beb0c625a0335f0fa3bd8e8455df8dc02d42d"


def test_a_limit_of_runs_at_once_counts_for_the_digest_only_where_it_is_set() -> None:
    assert "concurrency_limit" not in flow().model_dump()
    assert flow(concurrency_limit="2").concurrency_limit == 2
    assert flow(concurrency_limit=2).digest not in {flow().digest, flow(concurrency_limit=3).digest}
    assert FlowDefinition.model_validate_json(flow(concurrency_limit=2).model_dump_json()) == flow(concurrency_limit=2)


@pytest.mark.parametrize("limit", ["0", "-1", "1.5", "many", "", 10**12])
def test_a_limit_of_runs_at_once_is_a_number_of_runs(limit: object) -> None:
    with pytest.raises(ValidationError, match="concurrency_limit"):
        flow(concurrency_limit=limit)


def test_what_is_expected_counts_for_the_digest_only_where_it_is_set() -> None:
    assert "expect" not in flow().model_dump()
    assert flow(expect={}).model_dump()["expect"] == {"same_patient": True}
    digests = {flow(expect=expect).digest for expect in ({}, {"same_patient": False}, {"min_files": 1})}
    assert len(digests | {flow().digest}) == 4


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ({}, None),
        ({"expect": {}}, Expect()),
        ({"destinations": [{"host": "h", "port": 1, "ae_title": "A"}]}, Expect()),
        ({"return_to_sender_on_port": [1]}, Expect()),
        ({"return_to_sender_on_port": [1], "expect": {"same_patient": "no"}}, Expect(same_patient=False)),
    ],
)
def test_the_patient_is_looked_at_before_anything_is_sent_unless_the_flow_says_otherwise(
    values: dict[str, Any], expected: Expect | None
) -> None:
    assert flow(**values).expected == expected


def test_a_definition_cannot_be_changed() -> None:
    with pytest.raises(ValidationError, match="frozen"):
        flow().priority = 3  # type: ignore[misc]


@pytest.mark.parametrize(
    "name",
    [
        "",
        "  ",
        "a/b",
        "50%",
        "a&b",
        "<a",
        "a\nb",
        "a\x07",
        "a\0",
        "x" * 201,
        ".",
        "..",
        "a?b",
        "a#b",
        "a\\b",
        "a\u202eb",
    ],
)
def test_a_name_that_prefect_would_not_take_is_refused(name: str) -> None:
    with pytest.raises(ValidationError):
        flow(name=name)


def test_a_name_is_stripped_and_may_be_a_number() -> None:
    assert flow(name="  Fancy Flow ").name == "Fancy Flow"
    assert flow(name=7, version=1.02).name == "7"
    assert flow(version=1.02).version == "1.02"


@pytest.mark.parametrize(
    ("gpus", "pool"),
    [
        ((False,), "cpu"),
        ((False, True), "gpu"),
        (("yes",), "gpu"),
        (("a100", True), "gpu-a100"),
        (("False",), "cpu"),
        ((2, False), "gpu"),
        (("2", "a100"), "gpu-a100"),
    ],
)
def test_the_gpus_of_the_models_pick_the_work_pool(gpus: tuple[object, ...], pool: str) -> None:
    assert flow(models=[{"docker_kwargs": {"image": "a"}, "gpu": gpu} for gpu in gpus]).work_pool == pool


def test_two_kinds_of_gpu_are_refused_since_one_worker_runs_all_models() -> None:
    with pytest.raises(ValidationError, match="a100, h100"):
        flow(models=[{"docker_kwargs": {"image": "a"}, "gpu": kind} for kind in ("h100", "a100")])


@pytest.mark.parametrize("gpu", [0, "0", 65, "-1", 1.5, "", "a b", "a/b", "x" * 65, None])
def test_what_is_neither_a_number_nor_a_kind_of_gpu_is_refused(gpu: object) -> None:
    with pytest.raises(ValidationError):
        model(gpu=gpu)


@pytest.mark.parametrize(
    ("written", "kept", "count"),
    [(True, True, 1), (1, True, 1), ("1", True, 1), (2, 2, 2), ("2", 2, 2), ("a100", "a100", 1), (False, False, 0)],
)
def test_a_model_says_how_many_gpus_it_holds(written: object, kept: object, count: int) -> None:
    made = model(gpu=written)

    assert (type(made.gpu), made.gpu, made.gpu_count) == (type(kept), kept, count)
    dumped = made.model_dump(mode="json")
    assert (type(dumped["gpu"]), dumped["gpu"]) == (type(kept), kept)
    again = Model.model_validate_json(made.model_dump_json())
    assert (type(again.gpu), again) == (type(kept), made)


@pytest.mark.parametrize("gpu", [True, 2, "a100"])
def test_memory_is_asked_of_a_gpu(gpu: object) -> None:
    assert model(gpu=gpu, gpu_memory="8000").gpu_memory == 8000


@pytest.mark.parametrize("values", [{}, {"gpu": False}, {"gpu": "no"}])
def test_memory_without_a_gpu_is_refused(values: dict[str, object]) -> None:
    with pytest.raises(ValidationError, match="write `gpu: true` beside it") as caught:
        model(gpu_memory=8000, **values)
    assert caught.value.errors()[0]["loc"] == ("gpu_memory",)


def test_a_wrong_gpu_is_told_once_where_memory_stands_beside_it() -> None:
    with pytest.raises(ValidationError) as caught:
        model(gpu="?", gpu_memory=8000)
    assert [error["loc"] for error in caught.value.errors()] == [("gpu",)]


@pytest.mark.parametrize("gpu_memory", [0, -1, "8g", 1.5, 10_000_001, [8000]])
def test_what_is_no_amount_of_memory_is_refused(gpu_memory: object) -> None:
    with pytest.raises(ValidationError):
        model(gpu=True, gpu_memory=gpu_memory)


def test_memory_that_is_not_asked_for_is_not_dumped() -> None:
    assert "gpu_memory" not in model(gpu=True).model_dump(mode="json")
    assert model(gpu=True, gpu_memory=1).model_dump(mode="json")["gpu_memory"] == 1


@pytest.mark.parametrize(
    ("gpu", "digest"),
    [
        (False, "cd698e777dd5cafe12874436f0aaa0716a42a587ff1231fb54b05aca0e8434ba"),
        (True, "6563cba95ccf791b0a460b00c6c90e0c6683a744e9192742db2535bd964672b2"),
        ("1", "6563cba95ccf791b0a460b00c6c90e0c6683a744e9192742db2535bd964672b2"),
        ("a100", "7a2c39c22669d64073282f686a37ea17529cf920811692ccd32f70911687e3a1"),
    ],
)
def test_the_digest_of_a_definition_stays_the_same_from_version_to_version(gpu: object, digest: str) -> None:
    assert flow(models=[{"docker_kwargs": {"image": "a"}, "gpu": gpu}]).digest == digest


@pytest.mark.parametrize(("written", "folder"), [("/input/", "/input"), ("//a//b/./", "/a/b"), ("/a", "/a")])
def test_a_folder_of_a_container_is_normalised(written: str, folder: str) -> None:
    assert model(input_dir=written).input_dir == folder


@pytest.mark.parametrize(
    "folder", ["", "/", "//", "input", "/a/../b", "/proc/x", "/sys", "/dev/shm", "/a\nb", "/a:b", "/run/docker.sock"]
)
def test_a_folder_where_nothing_may_be_mounted_is_refused(folder: str) -> None:
    with pytest.raises(ValidationError):
        model(input_dir=folder)


@pytest.mark.parametrize(
    "values",
    [
        {"input_dir": "/data", "output_dir": "/data"},
        {"input_dir": "/data", "output_dir": "/data/out"},
        {"input_dir": "/output/in"},
        {"static_mounts": ["X:/input/model"]},
        {"static_mounts": ["X:/model", "Y:/model/sub"]},
        {"docker_kwargs": {"image": "a", "tmpfs": {"/output": ""}}},
    ],
)
def test_folders_in_each_other_are_refused(values: dict[str, Any]) -> None:
    with pytest.raises(ValidationError, match="a place of its own"):
        model(**values)


def test_two_static_mounts_may_share_a_place() -> None:
    mounts = model(static_mounts=["X:/model", "Y:/model/"]).static_mounts

    assert mounts == (StaticMount(source="X", target="/model"), StaticMount(source="Y", target="/model"))


@pytest.mark.parametrize(
    "mount",
    [
        "X",
        "X:",
        ":/m",
        "/etc:/m",
        "../x:/m",
        "a/../../b:/m",
        ".:/m",
        "X:m",
        "X:/m:rw",
        "X:/m:ro:ro",
        "X:/",
        "X\ny:/m",
        "X:/run/docker.sock",
    ],
)
def test_a_static_mount_from_elsewhere_or_to_nowhere_is_refused(mount: str) -> None:
    with pytest.raises(ValidationError):
        model(static_mounts=[mount])


def test_static_mount_in_the_singular_is_the_same_and_both_are_refused() -> None:
    assert model(static_mount="X:/m") == model(static_mounts=["X:/m"])
    with pytest.raises(ValidationError, match="keep one"):
        model(static_mount="X:/m", static_mounts=["Y:/m"])


@pytest.mark.parametrize("timeout", [0, -1, "nan", "inf", 1e12, "soon", None])
def test_a_timeout_that_never_comes_is_refused(timeout: object) -> None:
    with pytest.raises(ValidationError):
        model(timeout=timeout)


@pytest.mark.parametrize("title", ["", "   ", "a\\b", "x" * 17, "é", "a\tb", "a\n"])
def test_what_is_no_ae_title_is_refused(title: str) -> None:
    with pytest.raises(ValidationError, match="AE title"):
        Node.model_validate({"host": "h", "port": 1, "ae_title": title})


def test_spaces_around_an_ae_title_mean_nothing() -> None:
    assert Node.model_validate({"host": "h", "port": "104", "ae_title": " MY AE "}).ae_title == "MY AE"


@pytest.mark.parametrize(
    "values",
    [
        *(
            {"host": host}
            for host in ("", " ", "a b", "http://a", "a/b", "-a", "a-", "a..b", ".", "a\nb", "a\0", "ä.example")
        ),
        *(
            {"host": host}
            for host in ("a:104", "a_b:", "[::1]", "::g", "1.2.3.4:5", "fe80::1%\n", "x" * 64, "a." * 127 + "a")
        ),
        *({"port": port} for port in (0, 65536, "x", "104a", 1.5, None)),
    ],
)
def test_a_node_that_cannot_be_reached_by_its_address_is_refused(values: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        Node.model_validate({"host": "h", "port": 1, "ae_title": "A", **values})


@pytest.mark.parametrize(
    "host", ["localhost", "pacs-1.hospital.example", "my_container", "10.0.0.5", "::1", "fe80::1%eth0", "7"]
)
def test_a_host_is_a_name_or_an_address(host: str) -> None:
    assert Node.model_validate({"host": f" {host} ", "port": 1, "ae_title": "A"}).host == host


def test_a_host_with_its_port_is_answered_with_the_way_out() -> None:
    with pytest.raises(ValidationError, match="the port is a key of its own"):
        Node.model_validate({"host": "pacs:104", "port": 104, "ae_title": "A"})


@pytest.mark.parametrize("version", ["a\nb", "x" * 101, "\x1b[31m"])
def test_a_version_is_short_and_on_one_line(version: str) -> None:
    with pytest.raises(ValidationError):
        flow(version=version)


def test_a_static_mount_without_quotes_is_answered_with_the_way_to_write_it() -> None:
    with pytest.raises(ValidationError, match="in quotes and without a space"):
        model(static_mounts=[{"AwesomeModel1": "/model"}])


def test_the_form_in_which_runs_keep_their_definition_is_read_and_written_as_it_is() -> None:
    stored = {
        "name": "FancyFlow",
        "version": "1.02",
        "priority": 4,
        "triggers": [{"Modality": ["CT"], "(0008,1030)": ["AutoSeg", "~Phantom"]}],
        "models": [{"docker_kwargs": {"image": "busybox", "environment": {"A": "0"}}, "static_mounts": ["X:/model"]}],
        "destinations": [{"host": "localhost", "port": 10001, "ae_title": "STORESCP"}],
        "return_to_sender_on_port": [10002],
    }
    definition = FlowDefinition.model_validate(stored)

    assert definition.model_dump(mode="json", exclude_unset=True) == stored


def named(reads: dict[str, str], writes: dict[str, str], **values: Any) -> dict[str, Any]:
    return {"docker_kwargs": {"image": "a"}, "input_mounts": reads, "output_mounts": writes, **values}


def test_named_folders_make_a_graph() -> None:
    merge = named({"seg": "/seg/", "src": "/ct"}, {"dst": "/out"})
    definition = flow(models=[merge, named({"src": "/in"}, {"seg": "/out"})])
    assert definition.graph.order == (1, 0)
    assert definition.graph.steps[0].reads == {"seg": "/seg", "src": "/ct"}
    assert FlowDefinition.model_validate_json(definition.model_dump_json()) == definition


def test_without_named_folders_models_are_run_in_a_row_and_nothing_new_is_dumped() -> None:
    definition = flow(models=[{"docker_kwargs": {"image": "a"}}, {"docker_kwargs": {"image": "b"}}])
    assert definition.graph.order == (0, 1)
    assert not {"input_mounts", "output_mounts"} & definition.model_dump()["models"][0].keys()


@pytest.mark.parametrize(
    ("values", "reason"),
    [
        ({"output_mounts": {"dst": "/out"}}, "has output_mounts and no input_mounts"),
        ({"input_mounts": {"src": "/in"}}, "has input_mounts and no output_mounts"),
        (named({"src": "/in"}, {"dst": "/out"}, input_dir="/data"), "has input_dir and input_mounts"),
        (named({"src": "/in"}, {"dst": "/in"}), "/in stands for two folders"),
        (named({"src": "/in", "a": "/in/a"}, {"dst": "/out"}), "/in and /in/a lie in each other"),
        (named({}, {"dst": "/out"}), "names 0 folders"),
        (named({"../etc": "/in"}, {"dst": "/out"}), "is no name"),
        (named({"src": "relative"}, {"dst": "/out"}), "the folder of src: is no absolute path"),
        (named({"src": "/proc/1"}, {"dst": "/out"}), "the folder of src: nothing can be mounted at /proc/1"),
    ],
)
def test_folders_that_cannot_be_named_so(values: dict[str, Any], reason: str) -> None:
    with pytest.raises(ValidationError) as caught:
        model(**values)
    assert reason in str(caught.value)


def test_names_are_for_all_models_or_for_none() -> None:
    with pytest.raises(ValidationError, match=r"except model 2 \(b\); give them to all, or to none"):
        flow(models=[named({"src": "/in"}, {"dst": "/out"}), {"docker_kwargs": {"image": "b"}}])


def test_a_graph_that_cannot_be_run_is_no_definition() -> None:
    with pytest.raises(ValidationError, match=r"model 1 \(a\) reads seg, which no model writes"):
        flow(models=[named({"seg": "/in"}, {"dst": "/out"})])


def test_a_config_made_in_python_is_the_text_of_a_yaml_file() -> None:
    made = model(config={"threshold": 0.5, "labels": ["a", "b"]})
    assert json.loads(made.config or "") == {"threshold": 0.5, "labels": ["a", "b"]}
    assert Model.model_validate_json(made.model_dump_json()) == made


@pytest.mark.parametrize(
    ("values", "reason"),
    [
        ({"config": {}, "output_dir": "/config/out"}, "/config/out and /config lie in each other"),
        ({"config": "a\0b"}, "holds a NUL character"),
        ({"retries": -1}, "greater than or equal to 0"),
        ({"retries": 21}, "less than or equal to 20"),
        ({"retry_delay_seconds": []}, "at least 1 item"),
        ({"retry_delay_seconds": [1, -1]}, "greater than or equal to 0"),
    ],
)
def test_a_config_and_retries_that_cannot_be(values: dict[str, Any], reason: str) -> None:
    with pytest.raises(ValidationError) as caught:
        model(**values)
    assert reason in str(caught.value)


def test_one_delay_may_stand_without_a_list_and_nothing_new_is_dumped_without_it() -> None:
    assert model(retry_delay_seconds="5").retry_delay_seconds == (5.0,)
    assert not {"config", "retries", "retry_delay_seconds"} & model().model_dump().keys()


def test_what_the_models_get_is_dumped_where_it_says_something() -> None:
    plain = flow(triggers=[{"Modality": "CT"}])
    assert (plain.input, plain.tar_subdir, plain.has_own_input) == ("all", None, False)
    assert flow(triggers=[{"Modality": "CT"}], input="all").digest == plain.digest
    assert not {"input", "tar_subdir"} & plain.model_dump(mode="json").keys()

    matched = flow(triggers=[{"Modality": "CT"}], input="matched")
    flat = flow(triggers=[{"Modality": "CT"}], tar_subdir=[])
    levels = flow(triggers=[{"Modality": "CT"}], tar_subdir="SeriesInstanceUID")
    assert levels.tar_subdir == ("SeriesInstanceUID",)
    assert all(one.has_own_input for one in (matched, flat, levels))
    assert len({one.digest for one in (plain, matched, flat, levels)}) == 4
    for one in (matched, flat, levels):
        assert FlowDefinition.model_validate(one.model_dump(mode="json", exclude_none=True)) == one


@pytest.mark.parametrize(
    ("values", "reason"),
    [
        ({"input": "matched", "triggers": []}, "no triggers to match"),
        ({"input": "some"}, "'all' or 'matched'"),
        ({"tar_subdir": ["SeriesInstanceUUID"]}, "did you mean SeriesInstanceUID"),
        ({"tar_subdir": ["0020000E"]}, "write its keyword"),
        ({"tar_subdir": ["PixelData"]}, "no text to match"),
        ({"tar_subdir": ["Modality"] * 11}, "at most 10"),
    ],
)
def test_what_the_models_cannot_get_is_refused(values: dict[str, Any], reason: str) -> None:
    with pytest.raises(ValidationError, match=reason):
        flow(**values)
