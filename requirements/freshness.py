"""Check, offline, that the pinned requirements are what pyproject.toml and dev.in ask for, and name no address.

    python requirements/freshness.py

Prints each disagreement and ends with status 1 where there is one. That a newer version exists is no disagreement.
"""

from __future__ import annotations

import re
import sys
import tomllib
from collections.abc import Iterable, Iterator
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

_FOLDER = Path(__file__).resolve().parent
_ADDRESS = re.compile(r"://|\B-{1,2}(?:index-url|extra-index-url|find-links|i|f)\b|^\s*#.*\s(?:/|[A-Z]:\\)\S")
_WAY_OUT = "run 'make requirements'"


def read_requirements(text: str) -> Iterator[Requirement]:
    """Yield the requirements of a requirements file; comments and options are passed over."""
    for line in text.splitlines():
        content = line.split(" #")[0].strip()
        if content and not content.startswith(("#", "-")):
            yield Requirement(content)


def unmet(wanted: Iterable[Requirement], pins: Iterable[Requirement]) -> Iterator[str]:
    """Yield a sentence for each wanted requirement that no pin, or not every pin of its package, satisfies."""
    pinned: dict[str, list[str]] = {}
    for pin in pins:
        pinned.setdefault(canonicalize_name(pin.name), []).extend(clause.version for clause in pin.specifier)
    for requirement in wanted:
        versions = pinned.get(canonicalize_name(requirement.name), [])
        if not versions:
            yield f"{requirement.name} is not pinned"
        for version in versions:
            if not requirement.specifier.contains(version, prereleases=True):
                yield f"{requirement.name} is pinned to {version}, but {requirement} is wanted"


def addresses(text: str) -> Iterator[str]:
    """Yield a sentence for each line that names an index, a link or a folder of the machine it was compiled on."""
    for number, line in enumerate(text.splitlines(), start=1):
        if _ADDRESS.search(line):
            yield f"line {number} names an address: {line.strip()}"


def disagreements(*, pyproject: str, dev_in: str, runtime_txt: str, dev_txt: str) -> list[str]:
    """Return what is wrong with the two pinned files, given the texts of all four."""
    project = tomllib.loads(pyproject)["project"]
    optional = [line for lines in project.get("optional-dependencies", {}).values() for line in lines]
    runtime_pins, dev_pins = list(read_requirements(runtime_txt)), list(read_requirements(dev_txt))
    runtime = unmet(map(Requirement, project["dependencies"]), runtime_pins)
    dev = unmet([*map(Requirement, optional), *read_requirements(dev_in)], [*runtime_pins, *dev_pins])
    return [
        *(f"requirements/runtime.txt: {sentence}" for sentence in [*runtime, *addresses(runtime_txt)]),
        *(f"requirements/dev.txt: {sentence}" for sentence in [*dev, *addresses(dev_txt)]),
    ]


def main() -> int:
    """Check the files beside this one; return the exit status."""
    found = disagreements(
        pyproject=(_FOLDER.parent / "pyproject.toml").read_text(),
        dev_in=(_FOLDER / "dev.in").read_text(),
        runtime_txt=(_FOLDER / "runtime.txt").read_text(),
        dev_txt=(_FOLDER / "dev.txt").read_text(),
    )
    for sentence in found:
        print(f"{sentence} ({_WAY_OUT})", file=sys.stderr)
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
