from __future__ import annotations

import importlib.util

import pytest

from tests.services import ROOT

_spec = importlib.util.spec_from_file_location("freshness", ROOT / "requirements" / "freshness.py")
assert _spec is not None
assert _spec.loader is not None
freshness = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(freshness)

PYPROJECT = """
[project]
dependencies = ["Some_Package>=2", "other"]
[project.optional-dependencies]
demo = ["pictures"]
"""
DEV_IN = "-c runtime.txt\n# why\nlinter>=3   # a reason\n"
RUNTIME = "other==1 ; sys_platform == 'linux'\nsome-package==2.1\n    # via project (pyproject.toml)\n"
DEV = "linter==3.0\npictures==1 ; python_version < '3.12'\npictures==2 ; python_version >= '3.12'\n"


def _disagreements(**texts: str) -> list[str]:
    given = {"pyproject": PYPROJECT, "dev_in": DEV_IN, "runtime_txt": RUNTIME, "dev_txt": DEV}
    return freshness.disagreements(**{**given, **texts})


def test_pins_that_satisfy_all_that_is_asked_for_are_fresh():
    assert _disagreements() == []


@pytest.mark.parametrize(
    ("texts", "word"),
    [
        ({"runtime_txt": "some-package==2.1\n"}, "other is not pinned"),
        ({"runtime_txt": "some-package==1.9\nother==1\n"}, "Some_Package is pinned to 1.9"),
        ({"dev_txt": "pictures==1\n"}, "linter is not pinned"),
        ({"dev_txt": "linter==3.0\n"}, "pictures is not pinned"),
        ({"dev_txt": f"{DEV}linter==2.0 ; python_version >= '3.13'\n"}, "linter is pinned to 2.0"),
        ({"runtime_txt": f"--extra-index-url https://mirror.example/simple\n{RUNTIME}"}, "line 1 names an address"),
        ({"runtime_txt": f"{RUNTIME}--find-links wheels\n"}, "line 4 names an address"),
        ({"dev_txt": f"{DEV}    # via -r /home/someone/project/dev.in\n"}, "line 4 names an address"),
    ],
)
def test_a_disagreement_is_named(texts: dict[str, str], word: str):
    (sentence,) = _disagreements(**texts)

    assert word in sentence
