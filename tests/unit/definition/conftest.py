"""What the tests of this room share: definitions as files."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from flows_engine.definition.errors import DefinitionError, Problem
from flows_engine.definition.loading import load_definition

SMALLEST = "triggers: [{Modality: CT}]\nmodels: [{docker_kwargs: {image: hello-world}}]\ndestinations: []\n"

WriteFlow = Callable[..., Path]


@pytest.fixture
def write_flow(tmp_path: Path) -> WriteFlow:
    """Write a definition file and return where it lies."""

    def write(text: str | bytes, *, name: str = "flow.yaml") -> Path:
        path = tmp_path / name
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        return path

    return write


@pytest.fixture
def problems_of(write_flow: WriteFlow) -> Callable[[str | bytes], tuple[Problem, ...]]:
    """Return what is wrong with a text as a definition file."""

    def problems(text: str | bytes) -> tuple[Problem, ...]:
        with pytest.raises(DefinitionError) as caught:
            load_definition(write_flow(text))
        return caught.value.problems

    return problems
