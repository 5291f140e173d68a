"""What stands in a YAML file, and what is said of it where it is wrong."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from flows_engine.definition.errors import DefinitionError, Problem
from flows_engine.definition.loading import load_definition, read_yaml_mapping

SMALLEST = "triggers: [{Modality: CT}]\nmodels: [{docker_kwargs: {image: hello-world}}]\ndestinations: []\n"
WriteFlow = Callable[..., Path]
ProblemsOf = Callable[[str | bytes], tuple[Problem, ...]]


def model(text: str) -> str:
    return f"triggers: []\nmodels:\n  - {text}\n"


def docker(text: str) -> str:
    return model(f"docker_kwargs: {{image: a, {text}}}")


def test_the_smallest_flow_has_the_name_of_its_file_and_every_default(write_flow: WriteFlow) -> None:
    definition = load_definition(write_flow(SMALLEST, name="Small One.yaml")).definition

    assert (definition.name, definition.version, definition.priority) == ("Small One", "", 0)
    assert definition.triggers[0].conditions[0].tag == "00080060"
    assert definition.models[0].docker_kwargs.image == "hello-world"
    assert definition.models[0].docker_kwargs.network_disabled is True
    assert definition.models[0].timeout == 1800
    assert definition.models[0].pull_before_exec is True
    assert (definition.destinations, definition.return_to_sender_on_port) == ((), ())


def test_a_scalar_is_the_text_that_its_author_wrote(write_flow: WriteFlow) -> None:
    definition = load_definition(
        write_flow(
            "version: 1.10\npriority: '4'\ntriggers: [{Modality: NO, SeriesDescription: 0x10}]\nmodels:\n"
            "  - docker_kwargs: {image: a, command: 007, environment: {ZERO: 0, YES: yes, ON: true, E: 1e3}}\n"
            "    gpu: False\n    timeout: 2.5\n    pull_before_exec: no\n"
        )
    ).definition

    assert (definition.version, definition.priority) == ("1.10", 4)
    assert [c.patterns[0].text for c in definition.triggers[0].conditions] == ["NO", "0x10"]
    kwargs = definition.models[0].docker_kwargs
    assert (kwargs.command, kwargs.environment) == ("007", {"ZERO": "0", "YES": "yes", "ON": "true", "E": "1e3"})
    first = definition.models[0]
    assert (first.gpu, first.timeout, first.pull_before_exec) == (False, 2.5, False)


@pytest.mark.parametrize("models", ["models:\n  - {}", "models:\n  {}"], ids=["a list", "one alone"])
def test_a_config_is_the_yaml_that_its_author_wrote(write_flow: WriteFlow, models: str) -> None:
    config = "config: {threshold: 0.50, version: '1.10', on: no, labels: [a, ~], nested: {<<: {x: 1}, y: 2}}"
    text = "triggers: []\n" + models.format(f"{{docker_kwargs: {{image: a}}, {config}}}") + "\n"

    found = load_definition(write_flow(text)).definition.models[0].config

    assert found is not None
    assert yaml.safe_load(found) == yaml.safe_load(config)["config"]
    assert "0.50" in found


def test_a_config_that_others_share_stands_for_itself(write_flow: WriteFlow) -> None:
    text = (
        "triggers: []\nmodels:\n"
        "  - {docker_kwargs: {image: a}, config: {shared: &shared {size: [1, 2]}, again: *shared}}\n"
        "  - {docker_kwargs: {image: a}, config: {other: *shared}}\n"
    )

    first, second = (model.config for model in load_definition(write_flow(text)).definition.models)

    assert yaml.safe_load(first or "") == {"shared": {"size": [1, 2]}, "again": {"size": [1, 2]}}
    assert yaml.safe_load(second or "") == {"other": {"size": [1, 2]}}


@pytest.mark.parametrize(
    ("config", "reason"),
    [
        ("fast", "is no mapping"),
        ("[1, 2]", "is no mapping"),
        ("", "is no mapping"),
        ("{a: 1, a: 2}", "stands here twice"),
    ],
)
def test_a_config_that_is_none(problems_of: ProblemsOf, config: str, reason: str) -> None:
    (problem,) = problems_of(model(f"docker_kwargs: {{image: a}}\n    config: {config}"))

    assert (problem.line, problem.field.startswith("models[0].config"), problem.reason) == (4, True, reason)


def test_one_thing_needs_no_list(write_flow: WriteFlow) -> None:
    definition = load_definition(
        write_flow(
            "triggers: {Modality: CT}\nmodels: {docker_kwargs: {image: a}, static_mount: 'X:/model'}\n"
            "destinations: {host: h, port: 104, ae_title: A}\nreturn_to_sender_on_port: 10002\n"
        )
    ).definition

    assert len(definition.triggers) == len(definition.models) == len(definition.destinations) == 1
    assert definition.return_to_sender_on_port == (10002,)
    assert definition.models[0].static_mounts[0].target == "/model"


@pytest.mark.parametrize(
    ("text", "line", "reason", "hint"),
    [
        ("", None, "is empty", "triggers"),
        ("# nothing yet\n", None, "is empty", "triggers"),
        ("- a\n- b\n", 1, "not a mapping", "dash"),
        ("just text", 1, "not a mapping", ""),
        ("triggers:\n\t- Modality: CT\n", 2, "cannot start any token", "spaces"),
        ('name: x\nversion: "1.02\ntriggers: []\n', 2, "quoted scalar", "quote"),
        ("triggers: [\n", 2, "", "bracket"),
        ("a: 1\n---\nb: 2\n", 2, "another document", "file of its own"),
        ("a: *nowhere\n", 1, "undefined alias", "quotes"),
        (b"name: \xff\xfe\n", 1, "UTF-8", "UTF-8"),
        (b"# \xe4\n" * 2, 1, "UTF-8", "UTF-8"),
        ("".join(f"k{number}: [a, a, a]\n" for number in range(3000)), 2000, "more than 10000 values", ""),
        ("a: &a {<<: *a}\n", 1, "nested deeper", ""),
        ('name: "\\U00110000"\n', None, "escape", ""),
        ("%YAML 1." + "9" * 5000 + "\n---\na: 1\n", None, "YAML", ""),
        ("a: " + "[" * 100 + "]" * 100, 1, "nested deeper", ""),
        ("a: " + "[" * 5000 + "]" * 5000, 1, "nested deeper", ""),
        ("a: &a [*a]\n", 1, "nested deeper", ""),
        ("a: &a " + "x" * (1 << 20), None, "larger than", ""),
        ("a: \x00\n", None, "", ""),
    ],
)
def test_what_is_no_definition_at_all_is_one_problem_of_the_file(
    problems_of: ProblemsOf, text: str | bytes, line: int | None, reason: str, hint: str
) -> None:
    [problem] = problems_of(text)

    assert (problem.line, problem.field) == (line, "")
    assert reason in problem.reason
    assert hint in problem.hint


def test_a_billion_laughs_are_cut_short(problems_of: ProblemsOf) -> None:
    bomb = "a: &a [x, x, x, x, x, x, x, x, x, x]\n"
    for before, name in zip("abcdefgh", "bcdefghi", strict=True):
        bomb += f"{name}: &{name} [{', '.join([f'*{before}'] * 10)}]\n"

    [problem] = problems_of(bomb)

    assert "more than 10000 values" in problem.reason


def test_anchors_may_be_used(write_flow: WriteFlow) -> None:
    definition = load_definition(write_flow("triggers: []\nmodels: [&m {docker_kwargs: {image: a}}, *m]\n")).definition

    assert definition.models[0] == definition.models[1]


@pytest.mark.parametrize(
    ("text", "line", "field", "reason", "hint"),
    [
        ("models: [{docker_kwargs: {image: a}}]\n", 1, "triggers", "missing", "`triggers: []`"),
        ("models: [{docker_kwargs: {image: a}}]\ntriggers:\n", 2, "triggers", "no value", "`triggers: []`"),
        (SMALLEST + "version:\n", 4, "version", "no value", "leave"),
        ("triggers: []\n", 1, "models", "missing", "container"),
        ("triggers: []\nmodels: []\n", 2, "models", "empty", "container"),
        ("triggers: []\nmodels: 5\n", 2, "models", "not a mapping", ""),
        (SMALLEST + "input: some\n", 4, "input", "'all' or 'matched'", "only the instances that meet a trigger"),
        (SMALLEST + "tar_subdir: [Modalty]\n", 4, "tar_subdir[0]", "did you mean Modality?", ""),
        ("triggers: []\ninput: matched\n" + SMALLEST[27:], 2, "input", "no triggers to match; write `input: all`", ""),
        (SMALLEST + "priority: 9\n", 4, "priority", "greater than 5", ""),
        (SMALLEST + "priority: -1\n", 4, "priority", "less than 0", ""),
        (SMALLEST + "priority: high\n", 4, "priority", "no whole number; it says 'high'", ""),
        (SMALLEST + "concurrency_limit: 0\n", 4, "concurrency_limit", "less than 1", "at the same time"),
        (SMALLEST + "concurrency_limit: none\n", 4, "concurrency_limit", "no whole number", "at the same time"),
        (SMALLEST + "priorty: 1\n", 4, "priorty", "no known key", "did you mean priority?"),
        (SMALLEST + "name: a/b\n", 4, "name", "no name", ""),
        (SMALLEST + "version: 1\nversion: 2\n", 5, "version", "twice", ""),
        (SMALLEST + "? [a]\n: 1\n", 4, "", "key", ""),
        (SMALLEST + 'version: "\\ud800"\n', 4, "version", "surrogate", ""),
        (SMALLEST + 'name: "a\\0b"\n', 4, "name", "NUL", "leave it out"),
        (SMALLEST + "Priority: 1\n", 4, "Priority", "no known key", "did you mean priority?"),
        (SMALLEST + "version: !!python/name:os.system [a]\n", 4, "version", "is not text", ""),
        (SMALLEST + "<<: 5\n", 4, "<<", "merges mappings", ""),
        (
            model("{docker_kwargs: {image: a}, timeout: 30m}"),
            3,
            "models[0].timeout",
            "no number; it says '30m'",
            "seconds",
        ),
        (
            model("{docker_kwargs: {image: a}, timeout: 1e300}"),
            3,
            "models[0].timeout",
            "greater than 2678400;",
            "31 days",
        ),
        (
            model("{docker_kwargs: {image: a}, static_mounts: [X: /m]}"),
            3,
            "models[0].static_mounts[0]",
            "in quotes",
            "",
        ),
        (
            model("busybox"),
            3,
            "models[0]",
            "not a mapping of keys to values; it says 'busybox'",
            "docker_kwargs: {image",
        ),
        (docker("environment: [A]"), 3, "models[0].docker_kwargs.environment", "NAME=value", ""),
        (docker("environment: A"), 3, "models[0].docker_kwargs.environment", "not a mapping", "{NAME: value}"),
        ("destinations: localhost\n" + SMALLEST[:-17], 1, "destinations", "not a mapping", "{host: …, port"),
        (
            "triggers: []\nmodels:\n  - docker_kwargs:\n      command: x\n",
            3,
            "models[0].docker_kwargs.image",
            "missing",
            "image",
        ),
        ("triggers: []\nmodels:\n  - gpu: true\n", 3, "models[0].docker_kwargs", "missing", "image"),
        (
            model("{docker_kwargs: {image: a}, image: b}"),
            3,
            "models[0].image",
            "no key of a model",
            "below docker_kwargs",
        ),
        (model("{docker_kwargs: {image: a}, privileged: true}"), 3, "models[0].privileged", "no key", "docker_kwargs"),
        (model("{docker_kwargs: {image: a}, timeout: 0}"), 3, "models[0].timeout", "not greater than 0", ""),
        (model("{docker_kwargs: {image: a}, timeout: .inf}"), 3, "models[0].timeout", "", ""),
        (model("{docker_kwargs: {image: a}, gpu: 0}"), 3, "models[0].gpu", "no number of GPUs", ""),
        (model("{docker_kwargs: {image: a}, gpu: a/b}"), 3, "models[0].gpu", "kind of GPU", ""),
        (model("{docker_kwargs: {image: a}, gpu_memory: 8000}"), 3, "models[0].gpu_memory", "gpu: true", ""),
        (
            model("{docker_kwargs: {image: a}, gpu: 2, gpu_memory: 8g}"),
            3,
            "models[0].gpu_memory",
            "no whole number",
            "MiB",
        ),
        (model("{docker_kwargs: {image: a}, gpu: [0]}"), 3, "models[0].gpu", "neither true nor false", ""),
        (model("{docker_kwargs: {image: a}, static_mount: 'X'}"), 3, "models[0].static_mount", "SOURCE:/place", ""),
        (model("{docker_kwargs: {image: a}, pull_before_exec: x}"), 3, "models[0].pull_before_exec", "neither", ""),
        (docker("imag: b"), 3, "models[0].docker_kwargs.imag", "no known key", "did you mean image?"),
        (docker("command: {a: b}"), 3, "models[0].docker_kwargs.command", "neither a text nor a list", ""),
        (docker("volumes: [/:/host]"), 3, "models[0].docker_kwargs.volumes", "not allowed", "static_mounts"),
        (
            "triggers:\n  - Modality: CT\n    SeriesDescription: '('\n" + SMALLEST[27:],
            3,
            "triggers[0].SeriesDescription",
            "'(' is not a regular expression",
            "",
        ),
        ("triggers:\n  - Modalty: CT\n" + SMALLEST[27:], 2, "triggers[0].Modalty", "did you mean Modality?", ""),
        (
            "destinations:\n  host: h\n  port: 0\n  ae_title: A\n" + SMALLEST[:-17],
            3,
            "destinations.port",
            "less than 1",
            "",
        ),
        ("destinations: [{host: h, port: 1}]\n" + SMALLEST[:-17], 1, "destinations[0].ae_title", "missing", ""),
        ("return_to_sender_on_port: [1, x]\n" + SMALLEST, 1, "return_to_sender_on_port[1]", "no whole number", ""),
    ],
)
def test_a_problem_names_line_field_reason_and_way_out(
    problems_of: ProblemsOf, text: str, line: int, field: str, reason: str, hint: str
) -> None:
    [problem] = problems_of(text)

    assert (problem.line, problem.field) == (line, field)
    assert reason in problem.reason
    assert hint in problem.hint
    assert str(problem).startswith(f"{problem.file}:{line}: ")


def test_all_problems_are_told_at_once(problems_of: ProblemsOf) -> None:
    problems = problems_of(
        "priority: 9\ntriggers:\n  - {Modality: '(', Modalty: CT}\n  - {PixelData: x}\n"
        "models:\n  - docker_kwargs: {privileged: true}\n    gpu: 0\nunknown_one: 1\n"
    )

    assert [(problem.line, problem.field) for problem in problems] == [
        (1, "priority"),
        (3, "triggers[0].Modality"),
        (3, "triggers[0].Modalty"),
        (4, "triggers[1].PixelData"),
        (6, "models[0].docker_kwargs.privileged"),
        (6, "models[0].docker_kwargs.image"),
        (7, "models[0].gpu"),
        (8, "unknown_one"),
    ]


@pytest.mark.parametrize("key", ["static_mounts: ['X:/model:ro', 'Y:/other']", "static_mount: 'X:/model:ro'"])
def test_a_trailing_ro_is_tolerated_with_a_warning(write_flow: WriteFlow, key: str) -> None:
    loaded = load_definition(write_flow(model(f"{{docker_kwargs: {{image: a}}, {key}}}")))

    [warning] = loaded.warnings
    assert (warning.line, warning.field.split("[")[0]) == (3, "models")
    assert ":ro" in warning.reason
    assert str(loaded.definition.models[0].static_mounts[0].target) == "/model"


def test_a_file_that_is_not_there_is_a_problem_of_its_own(tmp_path: Path) -> None:
    with pytest.raises(DefinitionError, match="cannot be read: No such file"):
        load_definition(tmp_path / "missing.yaml")


def test_a_file_that_is_no_file_is_a_problem(tmp_path: Path) -> None:
    with pytest.raises(DefinitionError, match="cannot be read: Is a directory"):
        load_definition(tmp_path)


def test_any_mapping_can_be_read_with_its_lines(write_flow: WriteFlow) -> None:
    mapping = read_yaml_mapping(write_flow("A: 1\nB:\n  - x\n  - y: ~\n"))

    assert dict(mapping.values) == {"A": "1", "B": ["x", {"y": None}]}
    assert [mapping.lines[path] for path in (("A",), ("B",), ("B", 0), ("B", 1, "y"))] == [1, 2, 3, 4]


def test_a_file_of_comments_is_a_mapping_where_that_is_allowed(write_flow: WriteFlow) -> None:
    assert dict(read_yaml_mapping(write_flow("# nothing\n"), may_be_empty=True).values) == {}


_PIECES = st.sampled_from(
    [
        "triggers:",
        "models:",
        " ",
        "\n",
        "- ",
        "{",
        "}",
        "[",
        "]",
        '"',
        "'",
        "&a ",
        "*a",
        "docker_kwargs:",
        "image: a",
        "? ",
        ": ",
        "~",
        "!!x ",
        "|",
        ">",
        "%",
        "\t",
        "Modality: CT",
        "#",
        "---",
        "...",
        "\\U00110000",
        "\\ud800",
        "<<: ",
        "(",
        "0",
        "static_mounts:",
        "X:/m",
        "environment:",
        "\x85",
        "\u2028",
        "@",
        "`",
        ",",
    ]
)


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    content=st.one_of(
        st.binary(max_size=200),
        st.text(max_size=200).map(lambda t: t.encode("utf-8", "replace")),
        st.lists(_PIECES, max_size=40).map(lambda parts: "".join(parts).encode()),
    )
)
def test_any_bytes_are_a_definition_or_a_definition_error_with_the_file(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "any.yaml"
    path.write_bytes(content)

    problems: tuple[Problem, ...] = ()
    loaded = None
    try:
        loaded = load_definition(path)
    except DefinitionError as error:
        problems = error.problems

    assert (loaded is None) == bool(problems)
    assert all(problem.file == path and problem.reason for problem in problems)


def test_merge_keys_are_merged_and_what_stands_there_itself_wins(write_flow: WriteFlow) -> None:
    models = load_definition(
        write_flow(
            "triggers: []\nmodels:\n"
            "  - docker_kwargs: &one {image: a, user: 1, environment: {A: 1}}\n"
            "  - docker_kwargs: &two {image: b, mem_limit: 1g}\n"
            "  - docker_kwargs: {<<: [*one, *two], command: x, user: 2}\n"
            "  - docker_kwargs: {command: y, <<: *two}\n"
        )
    ).definition.models

    assert models[2].docker_kwargs.create_options() == {
        "command": "x", "user": "2", "environment": {"A": "1"}, "mem_limit": "1g"
    }  # fmt: skip
    assert (models[2].docker_kwargs.image, models[3].docker_kwargs.image) == ("a", "b")


def test_what_is_wrong_in_a_merged_mapping_is_told_where_it_stands(problems_of: ProblemsOf) -> None:
    problems = problems_of(
        "triggers: []\nmodels:\n  - docker_kwargs: &one\n      image: a\n      nano_cpus: x\n"
        "  - docker_kwargs:\n      <<: *one\n      command: y\n"
    )

    assert [(problem.line, problem.field) for problem in problems] == [
        (5, "models[0].docker_kwargs.nano_cpus"),
        (5, "models[1].docker_kwargs.nano_cpus"),
    ]


def test_a_quoted_merge_key_is_a_key(problems_of: ProblemsOf) -> None:
    [problem] = problems_of(SMALLEST + "'<<': {}\n")

    assert (problem.field, problem.reason) == ("<<", "is no known key")


def test_many_merges_of_each_other_are_cut_short(problems_of: ProblemsOf) -> None:
    bomb = "a0: &a0 {x: y}\n" + "".join(
        f"a{n}: &a{n} {{<<: [{', '.join([f'*a{n - 1}'] * 10)}]}}\n" for n in range(1, 9)
    )

    [problem] = problems_of(bomb)

    assert "more than 10000 values" in problem.reason


def test_a_long_text_that_aliases_repeat_is_cut_short(problems_of: ProblemsOf) -> None:
    [problem] = problems_of(f"a: &a {'x' * 100_000}\nb: [*a, *a, *a]\n")

    assert "holds more than" in problem.reason


def test_of_very_many_problems_the_first_hundred_are_told(problems_of: ProblemsOf) -> None:
    problems = problems_of(SMALLEST + "".join(f"key{number}: x\n" for number in range(150)))

    assert [problem.field for problem in problems[:-1]] == [f"key{number}" for number in range(100)]
    assert problems[-1].reason == "has 50 more problems; mend these first"


@pytest.mark.parametrize("key", ["x" * 100_000, '"a\\nb"', '"\\x1b[31m"'])
def test_a_key_that_cannot_be_shown_is_quoted_and_shortened(problems_of: ProblemsOf, key: str) -> None:
    [problem] = problems_of(SMALLEST + f"? {key}\n: x\n")

    assert len(problem.field) <= 61
    assert problem.field.isprintable()
    assert problem.reason == "is no known key"


def test_a_long_value_does_not_fill_the_screen(problems_of: ProblemsOf) -> None:
    [problem] = problems_of(SMALLEST + f"priority: {'9' * 100_000}\n")

    assert len(problem.reason) < 200


_KEYS = st.sampled_from(
    [
        "name",
        "version",
        "priority",
        "concurrency_limit",
        "triggers",
        "models",
        "destinations",
        "return_to_sender_on_port",
        "docker_kwargs",
        "gpu",
        "gpu_memory",
        "input_dir",
        "output_dir",
        "timeout",
        "static_mounts",
        "static_mount",
        "image",
        "command",
        "environment",
        "tmpfs",
        "labels",
        "mem_limit",
        "host",
        "port",
        "ae_title",
        "Modality",
        "(0008,0060)",
        "privileged",
        "conditions",
        "source",
        "target",
        "<<",
    ]
)
_SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(),
    st.text(max_size=6),
    st.sampled_from(
        ["CT", "~CT", "(", "a", "/a", "X:/m", "X:/m:ro", "8g", "A=1", "10.0.0.5", "9" * 5000, "(a{99}){99}"]
    ),
)
_STRUCTURES = st.recursive(
    _SCALARS,
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(_KEYS, inner, max_size=4)),
    max_leaves=12,
)
_MODELS = st.dictionaries(_KEYS, _STRUCTURES, max_size=3).map(lambda extra: {"docker_kwargs": {"image": "a"}, **extra})
_FLOWS = st.fixed_dictionaries(
    {"triggers": st.one_of(st.just([]), _STRUCTURES), "models": st.one_of(st.lists(_MODELS, max_size=2), _STRUCTURES)},
    optional={
        "destinations": _STRUCTURES,
        "priority": _SCALARS,
        "name": _SCALARS,
        "return_to_sender_on_port": _STRUCTURES,
    },
)


@settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
@given(values=st.one_of(_FLOWS, st.dictionaries(_KEYS, _STRUCTURES, max_size=5)))
def test_any_structure_is_a_definition_or_a_definition_error_with_the_file(tmp_path: Path, values: object) -> None:
    path = tmp_path / "any.yaml"
    path.write_text(yaml.safe_dump(values, allow_unicode=True), encoding="utf-8")

    try:
        loaded = load_definition(path)
    except DefinitionError as error:
        problems = error.problems
    else:
        assert loaded.definition.digest
        return
    assert problems
    assert all(problem.file == path and "\n" not in str(problem) for problem in problems)


def test_a_private_tag_and_a_path_can_be_written_in_yaml(write_flow: WriteFlow) -> None:
    text = (
        "triggers:\n  - RequestAttributesSequence.ScheduledProcedureStepDescription: Head\n"
        '    \'(0029,"SIEMENS CSA HEADER",10)\': [a, ~b]\n    (0029,"PLAIN",xx11): a\n'
        "models: [{docker_kwargs: {image: a}}]\n"
    )
    (trigger,) = load_definition(write_flow(text)).definition.triggers
    assert [condition.tag for condition in trigger.conditions] == [
        "00400275.00400007", '(0029,"SIEMENS CSA HEADER",10)', '(0029,"PLAIN",11)',
    ]  # fmt: skip


_FURTHER = """triggers: []
models:
  - docker_kwargs:
      image: a
      cap_add: [SYS_NICE]
      ulimits: [{name: memlock, soft: -1, hard: -1}]
      devices: ["/dev/x:/dev/x:rwm"]
      extra_hosts: {licences: 10.0.0.5}
      init: true
"""


def test_what_the_site_allows_is_read_as_it_is_written(write_flow: WriteFlow) -> None:
    names = ("cap_add", "ulimits", "devices", "extra_hosts", "init")
    path = write_flow(_FURTHER)

    assert load_definition(path, docker_kwargs_allowed=names).definition.models[0].docker_kwargs.create_options() == {
        "cap_add": ["SYS_NICE"],
        "ulimits": [{"name": "memlock", "soft": -1, "hard": -1}],
        "devices": ["/dev/x:/dev/x:rwm"],
        "extra_hosts": {"licences": "10.0.0.5"},
        "init": True,
    }
    with pytest.raises(DefinitionError) as caught:
        load_definition(path, docker_kwargs_allowed=names[:-1])
    assert [(problem.line, problem.field, problem.reason) for problem in caught.value.problems] == [
        (9, "models[0].docker_kwargs.init", "is not allowed")
    ]


def test_what_the_site_does_not_allow_is_told_with_the_reason_and_who_can(problems_of: ProblemsOf) -> None:
    by_whom = "who looks after this site can allow it, by DOCKER_KWARGS_ALLOWED"
    problems = problems_of(docker("cap_add: [SYS_NICE], init: perhaps, gpus: all"))

    assert {problem.field.rpartition(".")[2]: (problem.reason, problem.hint) for problem in problems} == {
        "cap_add": (
            "is not allowed",
            f"a container cannot gain privileges; {by_whom}: [cap_add]",
        ),
        "init": (
            "is not allowed",
            f"flows do without it; {by_whom}: [init]",
        ),
        "gpus": ("is not allowed", "for a GPU write `gpu: true` beside docker_kwargs"),
    }


@pytest.mark.parametrize(
    ("written", "field", "reason", "hint"),
    [
        ("ulimits: [{name: nofile, soft: 1}]", "ulimits[0].hard", "is missing", ""),
        ("ulimits: memlock", "ulimits", "is not a mapping of keys to values; it says 'memlock'", "{name: memlock"),
        ("ulimits: [{name: nofile, soft: x, hard: 1}]", "ulimits[0].soft", "is no whole number; it says 'x'", ""),
        ("ulimits: [{name: nofile, soft: 1, hard: 1, hart: 1}]", "ulimits[0].hart", "is no known key", "hard?"),
        ("cap_add: [SYS NICE]", "cap_add[0]", "is no capability like SYS_NICE, or ALL; it says 'SYS NICE'", ""),
        ("init: perhaps", "init", "is neither true nor false; it says 'perhaps'", ""),
        ("init:", "init", "", ""),
        ("extra_hosts: [a]", "extra_hosts", "is not a mapping of keys to values", "licences"),
        ("network: models", "", "names a network, and has none; write `network_disabled: false` beside it", ""),
    ],
)
def test_what_the_site_allows_and_is_badly_written_is_told(
    write_flow: WriteFlow, written: str, field: str, reason: str, hint: str
) -> None:
    path = write_flow(f"triggers: []\nmodels:\n  - docker_kwargs:\n      image: a\n      {written}\n")
    names = ("ulimits", "cap_add", "init", "extra_hosts", "network")
    if not reason:
        assert load_definition(path, docker_kwargs_allowed=names).definition.models[0].docker_kwargs.init is None
        return
    with pytest.raises(DefinitionError) as caught:
        load_definition(path, docker_kwargs_allowed=names)
    (problem,) = caught.value.problems
    assert problem.field == f"models[0].docker_kwargs{'.' if field else ''}{field}"
    assert problem.reason == reason
    assert hint in problem.hint
