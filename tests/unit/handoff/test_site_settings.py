"""The settings of a site: three sources, one namespace, and what is said of a wrong one."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from flows_engine.handoff.engine_address import EngineAddress
from flows_engine.handoff.site_settings import LoadedSettings, SettingsError, SiteSettings, load_site_settings

Load = Callable[..., LoadedSettings]


@pytest.fixture
def load(tmp_path: Path) -> Load:
    """Write conf files, and load them together with an environment."""
    folder = tmp_path / "conf.d"
    folder.mkdir()

    def with_files(text: str = "", *, files: dict[str, str] | None = None, **environ: str) -> LoadedSettings:
        for name, content in (files or {"a.yaml": text}).items():
            (folder / name).write_text(content)
        return load_site_settings({"CONF_DIR": str(folder), **environ})

    return with_files


def problems(load: Load, *args: Any, **kwargs: Any) -> list[str]:
    with pytest.raises(SettingsError) as caught:
        load(*args, **kwargs)
    return str(caught.value).splitlines()


def test_without_anything_the_defaults_hold(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    settings = load_site_settings({}).settings

    assert (settings.ae_title, settings.ae_hostname, settings.ae_port) == ("STORESCP", "localhost", 10000)
    assert (settings.log_level, settings.log_dir, settings.gpus, settings.tar_subdir) == (20, None, (), ())
    assert (settings.incomplete, settings.send_retry_delays_seconds) == ("hold", (5, 30, 120))
    assert settings.cpu_slots >= 1
    assert settings.data_dir.is_absolute()
    assert settings.data_dir.name == "data"


def test_the_later_source_wins(load: Load) -> None:
    files = {"10.yaml": "AE_TITLE: ONE\nAE_PORT: 1\nLOG_LEVEL: debug\n", "20.yaml": "AE_TITLE: TWO\nAE_PORT: 2\n"}
    settings = load(files=files, AE_TITLE="THREE").settings

    assert (settings.ae_title, settings.ae_port, settings.log_level) == ("THREE", 2, 10)


def test_only_yaml_files_that_are_not_hidden_are_read(load: Load) -> None:
    files = {"a.yaml": "AE_PORT: 1\n", ".b.yaml": "AE_PORT: 2\n", "c.yaml.bak": "AE_PORT: 3\n"}

    assert load(files=files).settings.ae_port == 1


def test_a_file_of_comments_says_nothing(load: Load) -> None:
    assert load("# AE_PORT: 1\n").settings.ae_port == 10000


@pytest.mark.parametrize("written", ["0 2 5", "0,2,5", '["0", "2", "5"]', "[0, 2, 5]", " 0, 2  5 "])
def test_gpus_have_several_spellings(load: Load, written: str) -> None:
    assert load(GPUS=written).settings.gpus == ("0", "2", "5")


def test_a_gpu_is_a_slot_unless_the_slots_are_set(load: Load) -> None:
    assert load().settings.gpu_runs_at_once == 1
    assert load(GPUS="0 2 5").settings.gpu_runs_at_once == 3
    assert load("GPU_SLOTS: 6\n", GPUS="0 2").settings.gpu_runs_at_once == 6
    assert load("GPU_SLOTS: 6\n", GPUS="0 2", GPU_SLOTS="").settings.gpu_runs_at_once == 2


def test_a_host_may_name_the_kind_of_its_gpus(load: Load) -> None:
    assert load().settings.gpu_kind is None
    assert load("GPU_KIND: a100\n").settings.gpu_kind == "a100"
    assert load("GPU_KIND: a100\n", GPU_KIND="").settings.gpu_kind is None


def test_a_list_in_a_file_is_a_list(load: Load) -> None:
    settings = load("GPUS: [0, 2]\nTAR_SUBDIR: [SeriesInstanceUID]\nSEND_RETRY_DELAYS_SECONDS: [0.5, 3]\n").settings

    assert (settings.gpus, settings.tar_subdir) == (("0", "2"), ("SeriesInstanceUID",))
    assert settings.send_retry_delays_seconds == (0.5, 3)


def test_the_environment_can_empty_what_a_file_says(load: Load) -> None:
    settings = load("GPUS: [0]\nLOG_DIR: /var/log/x\n", GPUS="", LOG_DIR="").settings

    assert (settings.gpus, settings.log_dir) == ((), None)


def test_folders_are_absolute_whatever_the_current_folder(
    load: Load, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", "/home/someone")
    settings = load("DATA_DIR: ./x\nLOG_DIR: ~/logs\n", STATIC_DIR="/static").settings

    assert settings.data_dir == tmp_path / "x"
    assert settings.log_dir == Path("/home/someone/logs")
    assert settings.static_dir == Path("/static")


def test_the_settings_of_prefect_stay_prefects_and_come_from_files_only(load: Load) -> None:
    loaded = load("PREFECT_API_URL: http://x/api\nPREFECT_LOGGING_LEVEL: 10\n", PREFECT_HOME="/x")

    assert loaded.prefect_settings == {"PREFECT_API_URL": "http://x/api", "PREFECT_LOGGING_LEVEL": "10"}


@pytest.mark.parametrize("text", ["PREFECT_API_URL:\n", "PREFECT_API_URL: [a]\n", "PREFECT_API_URL: {a: b}\n"])
def test_a_setting_of_prefect_that_is_no_text_is_refused(load: Load, text: str) -> None:
    assert "is not text" in problems(load, text)[0]


def test_what_belonged_to_rabbitmq_is_told_as_no_longer_used(load: Load) -> None:
    loaded = load("RABBIT_HOSTNAME: x\n", RABBIT_PORT="5672")

    assert len(loaded.warnings) == 2
    assert "a.yaml:1: RABBIT_HOSTNAME: is no longer used" in loaded.warnings[0]
    assert "environment: RABBIT_PORT" in loaded.warnings[1]


def test_an_unknown_name_in_a_file_is_refused_with_a_suggestion(load: Load) -> None:
    found = problems(load, "AE_TITEL: X\nae_port: 1\nZZZ: 1\n")

    assert ["did you mean AE_TITLE?" in found[0], "did you mean AE_PORT?" in found[1], "known are" in found[2]] == [
        True
    ] * 3
    assert "a.yaml:1:" in found[0]


def test_an_unknown_name_in_the_environment_is_none_of_our_business(load: Load) -> None:
    assert load(AE_TITEL="X", PATH="/bin").settings.ae_title == "STORESCP"


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("AE_TITLE", ""),
        ("AE_TITLE", "   "),
        ("AE_TITLE", "a\\b"),
        ("AE_TITLE", "x" * 17),
        ("AE_PORT", "65536"),
        ("AE_PORT", "x"),
        ("AE_PORT", ""),
        ("LOG_LEVEL", "loud"),
        ("PYNETDICOM_LOG_LEVEL", "loud"),
        ("TAR_SUBDIR", "SeriesInstanceUI"),
        ("TAR_SUBDIR", "PixelData"),
        ("TAR_SUBDIR", "0020000E"),
        ("GPUS", "../x"),
        ("GPUS", "0 0"),
        ("GPUS", "[0"),
        ("GPUS", "[" * 100_000),
        ("DATA_DIR", "~nobody-of-this-name/x"),
        ("STATIC_DIR", "/a\u202eb"),
        ("CPU_SLOTS", "0"),
        ("GPU_SLOTS", "0"),
        ("GPU_KIND", "a 100"),
        ("GPU_KIND", "2"),
        ("GPU_KIND", "yes"),
        ("INCOMPLETE", "maybe"),
        ("SEND_RETRY_DELAYS_SECONDS", "nan"),
        ("SEND_RETRY_DELAYS_SECONDS", "-1"),
        ("SEND_RETRY_DELAYS_SECONDS", "inf"),
        ("SEND_RETRY_DELAYS_SECONDS", "1 " * 51),
        ("DATA_DIR", ""),
        ("FLOW_DIRECTORY", " "),
    ],
)
def test_a_wrong_value_is_refused_with_its_origin_from_either_source(load: Load, name: str, value: str) -> None:
    assert all(line.startswith(f"environment: {name}: ") for line in problems(load, "", **{name: value}))
    assert f"a.yaml:1: {name}: " in problems(load, f"{name}: '{value}'\n")[0]


def test_everything_wrong_is_told_at_once(load: Load) -> None:
    files = {"a.yaml": "AE_PORT: x\nNOPE_AT_ALL: 1\n", "b.yaml": "AE_TITLE: [\n", "c.yaml": "- a\n"}
    found = "\n".join(problems(load, files=files, CPU_SLOTS="0"))

    for part in (
        "a.yaml:1: AE_PORT",
        "a.yaml:2: NOPE_AT_ALL",
        "b.yaml:2: is no YAML",
        "c.yaml:1: is not a mapping",
        "environment: CPU_SLOTS",
    ):
        assert part in found


def test_a_folder_of_settings_that_is_not_there_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="CONF_DIR"):
        load_site_settings({"CONF_DIR": str(tmp_path / "nowhere")})


def test_settings_cannot_be_changed_and_read_nothing_behind_our_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AE_TITLE", "NOT_THIS")
    settings = SiteSettings()

    assert settings.ae_title == "STORESCP"
    with pytest.raises(ValidationError, match="frozen"):
        settings.ae_title = "X"  # type: ignore[misc]


@given(
    gpus=st.lists(st.from_regex(r"[0-9]|GPU-[a-f0-9]{8}", fullmatch=True), unique=True, max_size=4),
    tar_subdir=st.lists(st.sampled_from(["SeriesInstanceUID", "Modality", "PatientID"]), max_size=3),
    delays=st.lists(st.floats(0, 86_400), max_size=4),
    log_dir=st.sampled_from([None, "/var/log/dicomflow"]),
    ae_title=st.from_regex(r"[!-\[\]-~]([ -\[\]-~]{0,14}[!-\[\]-~])?", fullmatch=True),
    hostname=st.sampled_from(["", "localhost", "::"]),
)
def test_a_child_process_has_the_same_settings(
    gpus: list[str], tar_subdir: list[str], delays: list[float], log_dir: str | None, ae_title: str, hostname: str
) -> None:
    settings = SiteSettings.model_validate(
        {
            "gpus": gpus,
            "tar_subdir": tar_subdir,
            "send_retry_delays_seconds": delays,
            "log_dir": log_dir,
            "ae_title": ae_title,
            "ae_hostname": hostname,
            "data_dir": "/data",
            "incomplete": "process",
            "ae_port": 0,
            "gpu_kind": "a100",
            "docker_host": "tcp://gpu-host:2376",
            "docker_tls_verify": True,
            "docker_cert_path": "/certificates",
            "docker_host_block": "my-engine",
        }
    )

    assert load_site_settings(settings.as_environment()).settings == settings


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("AE_PORT", "x", "is no whole number; it says 'x'"),
        ("AE_PORT", "70000", "is greater than 65535; it says '70000'"),
        ("INCOMPLETE", "maybe", "is not one of 'hold' or 'process'; it says 'maybe'"),
        ("DATA_DIR", "", "is empty; name a folder; it says ''"),
        ("SEND_RETRY_DELAYS_SECONDS", "5 soon", "is no number; it says 'soon'"),
    ],
)
def test_what_is_said_reads_as_a_person_would_say_it(load: Load, name: str, value: str, said: str) -> None:
    assert problems(load, "", **{name: value}) == [f"environment: {name}: {said}"]


@pytest.mark.parametrize("group_by", ["association", "study", "patient"])
def test_studies_are_grouped_as_a_site_wants(group_by: str) -> None:
    assert load_site_settings({"GROUP_BY": group_by}).settings.group_by == group_by


def test_peers_may_stand_in_a_list_or_in_one_text() -> None:
    for written in ("CT1 10.0.0.0/8", '["CT1", "10.0.0.0/8"]'):
        assert load_site_settings({"ALLOWED_PEERS": written}).settings.allowed_peers == ("CT1", "10.0.0.0/8")


@pytest.mark.parametrize("written", ["cap_add, init", "cap_add init cap_add", '["cap_add", "init"]'])
def test_arguments_of_docker_that_flows_may_use_have_several_spellings(load: Load, written: str) -> None:
    settings = load(DOCKER_KWARGS_ALLOWED=written).settings

    assert settings.docker_kwargs_allowed == ("cap_add", "init")
    assert SiteSettings.model_validate(settings.as_environment()).docker_kwargs_allowed == ("cap_add", "init")
    assert load("DOCKER_KWARGS_ALLOWED: [cap_add, init]\n").settings.docker_kwargs_allowed == ("cap_add", "init")
    assert load("DOCKER_KWARGS_ALLOWED: []\n").settings.docker_kwargs_allowed == ()


def test_an_argument_of_docker_that_no_site_may_allow_is_told_with_the_reason(load: Load) -> None:
    (never,) = problems(load, "AE_PORT: 1\nDOCKER_KWARGS_ALLOWED: [cap_add, mounts]\n")
    assert never.partition("a.yaml:2: ")[2].startswith(
        "DOCKER_KWARGS_ALLOWED: mounts can never be allowed: a container sees its input, its output"
    )
    (unknown,) = problems(load, DOCKER_KWARGS_ALLOWED="cap_ad")
    assert unknown.endswith(
        "environment: DOCKER_KWARGS_ALLOWED: 'cap_ad' is no argument of docker-py's containers.create"
        " (did you mean cap_add?)"
    )


def test_the_engine_is_the_local_one_unless_something_is_said(load: Load) -> None:
    assert load("").settings.engine_address == EngineAddress(url="unix:///var/run/docker.sock")
    assert load("", DOCKER_HOST="", DOCKER_TLS_VERIFY="").settings.engine_address == EngineAddress()


def test_dockers_own_variables_are_settings_in_files_and_in_the_environment(load: Load) -> None:
    written = "DOCKER_HOST: tcp://gpu-host\nDOCKER_TLS_VERIFY: 1\nDOCKER_CERT_PATH: /certificates\n"
    address = EngineAddress(url="tcp://gpu-host", certificates=Path("/certificates"))
    assert load(written).settings.engine_address == address
    assert load(written, DOCKER_HOST="unix:///x.sock").settings.engine_address.url == "unix:///x.sock"
    # Docker's own client takes any text for a yes.
    said = load("", DOCKER_HOST="tcp://gpu-host", DOCKER_TLS_VERIFY="0").settings
    assert said.engine_address.certificates == Path.home() / ".docker"
    assert load(written, DOCKER_TLS_VERIFY="", DOCKER_CERT_PATH="").settings.engine_address.certificates is None


@pytest.mark.parametrize(
    ("environment", "said"),
    [
        ({"DOCKER_HOST": "ssh://user@gpu-host"}, "DOCKER_HOST: 'ssh://user@gpu-host' leads over ssh"),
        ({"DOCKER_HOST": "gpu-host:2375"}, "write unix:///path/of/socket or tcp://host:port"),
        ({"DOCKER_HOST": "tcp://gpu-host", "DOCKER_CERT_PATH": "/certificates"}, "used with DOCKER_TLS_VERIFY only"),
        ({"DOCKER_HOST_BLOCK": "my-engine", "DOCKER_CERT_PATH": "/certificates"}, "used with DOCKER_TLS_VERIFY only"),
        ({"DOCKER_HOST_BLOCK": "docker-host/my_engine"}, "is no name of a block, like my-engine"),
    ],
)
def test_an_engine_that_cannot_be_used_is_told_at_the_start(load: Load, environment: dict[str, str], said: str) -> None:
    (problem,) = problems(load, "", **environment)
    assert said in problem


def test_a_certificate_path_that_lies_about_for_the_local_engine_does_no_harm(load: Load) -> None:
    assert load("", DOCKER_CERT_PATH="/certificates").settings.engine_address == EngineAddress()


@pytest.mark.parametrize(
    ("value", "said"),
    [
        ("CANARY", "is shorter than 12 characters"),
        ("CANARY-CANARY\n", "holds characters other than the visible ones of ASCII"),
        ("CANARY-CANARY-é", "holds characters other than the visible ones of ASCII"),
    ],
)
@pytest.mark.parametrize("name", ["STOW_TOKEN", "STOW_PASSWORD"])
def test_a_secret_is_not_repeated_when_something_is_wrong_with_it(load: Load, name: str, value: str, said: str) -> None:
    assert problems(load, "", **{name: value}) == [f"environment: {name}: {said}"]


def test_a_secret_that_is_no_text_is_not_repeated_either(load: Load) -> None:
    (problem,) = problems(load, "STOW_TOKEN: [CANARY-CANARY]\n")
    assert problem.endswith("STOW_TOKEN: is not text; write it between quotes")
    assert "CANARY" not in problem


def test_a_secret_is_shown_nowhere_and_reaches_a_child_process(load: Load) -> None:
    settings = load("STOW_TOKEN: CANARY-CANARY\nSTOW_USER: radiology\nSTOW_PASSWORD: ''\n").settings
    assert "CANARY" not in f"{settings}{settings!r}{settings.model_dump_json()}"
    assert settings.stow_password is None
    environment = settings.as_environment()
    assert environment["STOW_TOKEN"] == "CANARY-CANARY"
    assert load_site_settings(environment).settings == settings


@pytest.mark.parametrize("name", ["a:b", "a\nb"])
def test_a_user_that_basic_authentication_cannot_name_is_refused(load: Load, name: str) -> None:
    assert "STOW_USER" in problems(load, "", STOW_USER=name)[0]


@pytest.mark.parametrize("text", ["COMMITMENT_PEERS: {PACS: 'pacs.hospital:104', ARCHIVE: '[::1]:11112'}\n"])
def test_peers_are_a_mapping_in_files_and_json_in_the_environment(load: Load, text: str) -> None:
    settings = load(text).settings
    assert settings.commitment_peers == {"PACS": "pacs.hospital:104", "ARCHIVE": "[::1]:11112"}
    assert load_site_settings(settings.as_environment()).settings == settings


@pytest.mark.parametrize("value", ["PACS", "[]", '{"PACS": "pacs"}', '{"PACS": "pacs:99999"}', '{"": "pacs:104"}'])
def test_peers_without_an_address_are_refused(load: Load, value: str) -> None:
    (problem,) = problems(load, "", COMMITMENT_PEERS=value)
    assert problem.startswith("environment: COMMITMENT_PEERS: ")
