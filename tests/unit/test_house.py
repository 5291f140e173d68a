from __future__ import annotations

import ast
import configparser
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest

from tests.services import ROOT

ROOMS = ("flows_engine", "dicom_gateway", "deployments")
FOLDERS = (*ROOMS, "flow_definitions", "tests", "docs", "requirements", ".ci")
FILES = ("Makefile", "pyproject.toml", "prefect.yaml", "README.md", "CONTRIBUTING.md", "CHANGELOG.md")
TEXT = {"", ".cfg", ".in", ".json", ".md", ".py", ".sh", ".toml", ".txt", ".yaml", ".yml"}
# Put together here, so that this file does not hold what it looks for.
FOREIGN = re.compile("|".join(("py" + r"pi\.org", "python" + r"hosted\.org", "/ro" + "ot/", r"(?<![\w.])/wo" + "rk/")))

PLANTED = {
    "flows_engine/errors.py": "import dicom_gateway.errors\nimport flows_engine.interfaces",
    "flows_engine/definition/errors.py": "import flows_engine.definition.schema",
    "flows_engine/definition/naming.py": "import subprocess\nimport yaml",
    "flows_engine/handoff/decoding.py": "import flows_engine.handoff.header",
    "flows_engine/interfaces.py": "import prefect\nimport pynvml\nimport typer\nimport uvicorn",
    "flows_engine/worker/zygote.py": "import flows_engine.worker.warm_start",
    "dicom_gateway/errors.py": "import docker\nimport flows_engine.docker_runner\nimport dicom_gateway.intake",
    "deployments/plan.py": "import deployments.apply\nimport pynetdicom",
}
"""Violations, so chosen that every contract of the map has one of its own."""


def _house() -> list[Path]:
    inside = [path for folder in FOLDERS for path in sorted((ROOT / folder).rglob("*"))]
    files = [path for path in [*inside, *(ROOT / name for name in FILES)] if path.is_file()]
    return [path for path in files if path.suffix in TEXT and "__pycache__" not in path.parts]


def _modules() -> list[Path]:
    return [path for room in ROOMS for path in sorted((ROOT / room).rglob("*.py"))]


def test_no_file_names_a_package_registry_or_a_folder_of_one_machine():
    found = [
        f"{path.relative_to(ROOT)}:{number}: {line.strip()}"
        for path in _house()
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1)
        if FOREIGN.search(line)
    ]

    assert found == []


@pytest.mark.parametrize("path", _modules(), ids=lambda path: str(path.relative_to(ROOT)))
def test_every_module_says_what_it_is(path: Path):
    assert ast.get_docstring(ast.parse(path.read_text(encoding="utf-8")))


def test_every_unit_test_is_named_after_a_module():
    own = [*(ROOT / "requirements").glob("*.py"), *(ROOT / "tests").glob("*.py")]
    modules = {path.stem for path in [*_modules(), *own]} | {"house"}
    tested = {path: path.stem.removeprefix("test_") for path in (ROOT / "tests" / "unit").rglob("test_*.py")}

    assert [str(path.relative_to(ROOT)) for path, name in tested.items() if name not in modules] == []


def test_a_violation_of_any_contract_of_the_map_is_caught(tmp_path: Path):
    for room in ROOMS:
        shutil.copytree(ROOT / room, tmp_path / room, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / ".importlinter", tmp_path)
    for name, lines in PLANTED.items():
        with (tmp_path / name).open("a") as module:
            module.write(f"\n{lines}\n")

    report = _lint_imports(tmp_path)

    kept = [name for name in _contract_names() if not re.search(rf"^{re.escape(name)} BROKEN", report, re.MULTILINE)]
    assert kept == [], report


def test_a_module_that_is_not_on_the_map_is_caught(tmp_path: Path):
    for room in ROOMS:
        shutil.copytree(ROOT / room, tmp_path / room, ignore=shutil.ignore_patterns("__pycache__"))
        (tmp_path / room / "stray.py").write_text('"""Nobody said where this belongs."""\n')
    shutil.copy(ROOT / ".importlinter", tmp_path)

    report = _lint_imports(tmp_path)

    assert [room for room in ROOMS if f"- {room}.stray" not in report] == [], report


def test_without_an_engine_the_way_out_is_one_line():
    done = _host_script("docker_engine.sh", environment={**os.environ, "DOCKER_HOST": "unix:///nowhere/docker.sock"})

    assert done.returncode == 1
    assert done.stderr.splitlines() == [
        "No Docker engine answers at DOCKER_HOST=unix:///nowhere/docker.sock: start it, or unset DOCKER_HOST."
    ]


def test_where_packages_are_not_ours_to_install_the_way_out_is_one_line():
    done = _host_script("debian_packages.sh", "dcmtk", environment={"PATH": "/nowhere"})

    assert done.returncode == 1
    assert done.stderr.splitlines() == ["Please install 'dcmtk' (names as in Debian), then run this again."]


def _host_script(name: str, *arguments: str, environment: Mapping[str, str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["/bin/bash", str(ROOT / "deployments" / "host" / name), *arguments],
        env=dict(environment),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def _contract_names() -> list[str]:
    contracts = configparser.ConfigParser()
    contracts.read(ROOT / ".importlinter")
    names = [contracts[section]["name"] for section in contracts.sections() if ":contract:" in section]
    assert names
    return names


def _lint_imports(folder: Path) -> str:
    code = "import sys; sys.path.insert(0, '.'); from importlinter.cli import lint_imports; sys.exit(lint_imports())"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=folder, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 1, done.stdout + done.stderr
    return done.stdout
