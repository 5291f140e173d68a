"""A container runner without an engine: images are names, programs are functions."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from typing import Final

from flows_engine.errors import ImagePullFailedError, ImageUnavailableError, ModelTimedOutError, RunHaltedError
from flows_engine.interfaces import ContainerResult, ContainerSpec

FOREVER: Final = object()
"""What a program yields that never ends."""

Program = Callable[[ContainerSpec], Iterator[object]]
"""Yields its lines, and at last its exit code as an ``int``."""


class FakeContainerRunner:
    """Runs a program for each image. ``pullable`` are the images that a registry has."""

    def __init__(self, programs: Mapping[str, Program], *, pullable: frozenset[str] = frozenset()) -> None:
        self._programs = programs
        self._pullable = pullable
        self.running: dict[str, ContainerSpec] = {}
        self.specs: list[ContainerSpec] = []

    def run(
        self,
        spec: ContainerSpec,
        *,
        on_line: Callable[[str], None],
        on_notice: Callable[[str], None],
        is_halted: Callable[[], bool] = lambda: False,
        watch: Callable[[], None] = lambda: None,
    ) -> ContainerResult:
        """Run the program of the image, to its end or to the end of its time."""
        program = self._programs.get(spec.image)
        if program is None:
            sentence = f"image {spec.image} is not in the engine"
            raise ImagePullFailedError(sentence) if spec.pull else ImageUnavailableError(sentence)
        if spec.pull and spec.image not in self._pullable:
            on_notice(f"image {spec.image} could not be pulled; the one in the engine is used")
        self.specs.append(spec)
        self.running[spec.name] = spec
        started_at, lines = time.time(), list[str]()
        try:
            for said in program(spec):
                if is_halted():
                    raise RunHaltedError
                if said != 0:
                    watch()
                if isinstance(said, int):
                    return ContainerResult(
                        exit_code=said,
                        image_digest=f"sha256:{spec.image}",
                        started_at=started_at,
                        duration_seconds=time.time() - started_at,
                        log_tail=tuple(lines[-20:]),
                    )
                if said is FOREVER:
                    raise ModelTimedOutError("it ran longer than its timeout and was killed")
                lines.append(str(said))
                on_line(str(said))
        finally:
            self.running.pop(spec.name, None)
        raise AssertionError("a program ends with its exit code")

    def find_all(self, *, label: str, value: str) -> tuple[Mapping[str, str], ...]:
        """Return all labels of each container that carries ``label=value``."""
        return tuple(spec.labels for spec in self.running.values() if spec.labels.get(label) == value)

    def remove_all(self, *, label: str, value: str) -> int:
        """Forget every container that carries ``label=value``."""
        found = [name for name, spec in self.running.items() if spec.labels.get(label) == value]
        for name in found:
            del self.running[name]
        return len(found)
