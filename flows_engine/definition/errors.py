"""What can be wrong with a flow definition.

DefinitionError            a file cannot be used; carries every problem found in it
  └─ problems: Problem     file, line, field, reason, way out
PatternTimeoutError        a pattern is too hard to match against a value; the definition should be simpler
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, kw_only=True)
class Problem:
    """One thing wrong in one file, with all that its author needs to mend it.

    ``line`` counts from 1; ``field`` is written as in the YAML (``models[0].docker_kwargs.image``) and is empty where
    the file as a whole is meant. ``hint`` is the way out, where there is one.
    """

    file: Path
    line: int | None
    field: str
    reason: str
    hint: str = ""

    def __str__(self) -> str:
        """Return ``file:line: field: reason (hint)``, in the form that editors and terminals can jump to."""
        place = f"{self.file}:{self.line}" if self.line is not None else str(self.file)
        parts = [place, self.field, self.reason] if self.field else [place, self.reason]
        return ": ".join(parts) + (f" ({self.hint})" if self.hint else "")


class DefinitionError(ValueError):
    """A definition file cannot be used. Its author has to change it; trying again does not help."""

    def __init__(self, problems: tuple[Problem, ...]) -> None:
        super().__init__("\n".join(str(problem) for problem in problems))
        self.problems = problems


class PatternTimeoutError(Exception):
    """A pattern took too long on a value, so that nothing can be said. Its author has to write it more simply."""
