from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from deployments.plain_connection import PlainAddress, names_set_in_files, plain_address
from deployments.services import PREFECT_DEFAULTS

URL = "http://127.0.0.1:4200/api"
SITE = {"PREFECT_API_URL": URL, "DATA_DIR": "/data", **PREFECT_DEFAULTS}


def test_what_a_site_sets_by_default_needs_no_client_of_prefects():
    assert plain_address(SITE, set_in_files=[]) == PlainAddress(api_url=URL, headers={})


@pytest.mark.parametrize(
    ("name", "value", "header"),
    [("PREFECT_API_KEY", "k", "Bearer k"), ("PREFECT_API_AUTH_STRING", "a:b", "Basic YTpi")],
)
def test_credentials_of_the_environment_are_shown(name: str, value: str, header: str):
    address = plain_address({**SITE, name: value}, set_in_files=[])

    assert address is not None
    assert address.headers == {"Authorization": header}


@pytest.mark.parametrize(
    "name",
    [
        "PREFECT_CLIENT_CUSTOM_HEADERS",
        "PREFECT_API_REQUEST_TIMEOUT",
        "PREFECT_CLOUD_API_URL",
        "PREFECT_CLIENT_RETRY_EXTRA_CODES",
        "PREFECT_TESTING_UNIT_TEST_MODE",
        "PREFECT_WHAT_NOBODY_KNOWS_YET",
        "prefect_api_key",
        "Prefect_Client_Custom_Headers",
    ],
)
def test_what_only_prefects_client_knows_is_left_to_it(name: str):
    assert plain_address({**SITE, name: "x"}, set_in_files=[]) is None
    assert plain_address(SITE, set_in_files=[name]) is None


@pytest.mark.parametrize("name", ["PREFECT_API_KEY", "PREFECT_API_AUTH_STRING", "api"])
def test_credentials_that_a_file_may_hold_are_left_to_prefects_client(name: str):
    assert plain_address(SITE, set_in_files=[name]) is None


@pytest.mark.parametrize("url", ["", "https://prefect.local/api", "HTTP://odd", "unix:/x"])
def test_another_address_than_plain_http_is_left_to_prefects_client(url: str):
    assert plain_address({**SITE, "PREFECT_API_URL": url}, set_in_files=[]) is None


def test_files_that_cannot_be_read_are_left_to_prefects_client():
    assert plain_address(SITE, set_in_files=None) is None


PROFILES = 'active = "a"\n[profiles.a]\nPREFECT_SERVER_X = "1"\n[profiles.b]\nPREFECT_API_KEY = "k"\n'


@pytest.mark.parametrize("variable", ["PREFECT_HOME", "PREFECT_PROFILES_PATH"])
def test_what_any_profile_sets_counts(tmp_path: Path, variable: str):
    file = tmp_path / "profiles.toml"
    file.write_text(PROFILES)
    environ = {variable: str(tmp_path if variable == "PREFECT_HOME" else file)}

    assert names_set_in_files(environ, tmp_path) == {"PREFECT_SERVER_X", "PREFECT_API_KEY"}


def test_profiles_lie_in_the_home_of_a_person_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / ".prefect").mkdir()
    (tmp_path / ".prefect/profiles.toml").write_text(PROFILES)

    assert names_set_in_files({}, tmp_path) == {"PREFECT_SERVER_X", "PREFECT_API_KEY"}


@pytest.mark.parametrize(
    ("name", "content"),
    [
        (".env", "A=1"),
        ("prefect.toml", ""),
        ("pyproject.toml", "[tool.prefect.client]\n"),
        ("pyproject.toml", "[tool"),
        ("profiles.toml", "profiles = 1"),
        ("profiles.toml", "[profiles"),
    ],
)
def test_files_of_settings_that_only_prefect_reads(tmp_path: Path, name: str, content: str):
    environ = {"PREFECT_HOME": str(tmp_path)}
    (tmp_path / "pyproject.toml").write_text("[tool.other]\n")
    assert names_set_in_files(environ, tmp_path) == set()

    (tmp_path / name).write_text(content)

    assert names_set_in_files(environ, tmp_path) is None


def test_deploying_imports_neither_prefect_nor_the_engine_nor_the_gateway():
    unwanted = "{'prefect', 'docker', 'pynetdicom', 'flows_engine.wiring', 'dicom_gateway.wiring'}"
    program = f"import sys, deployments.cli, deployments.deploy; print(sorted({unwanted} & set(sys.modules)))"

    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True, env=dict(os.environ)
    )

    assert done.stdout == "[]\n"
