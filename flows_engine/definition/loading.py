"""YAML files -> definitions, or every problem in them with file, line, field, reason and way out."""

from __future__ import annotations

import difflib
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final, get_args

import yaml
from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from flows_engine.definition.allowable_kwargs import ALLOWED_HERE, NOT_ALLOWED
from flows_engine.definition.docker_kwargs import DockerKwargs, reason_for_refusal
from flows_engine.definition.errors import DefinitionError, Problem
from flows_engine.definition.schema import FlowDefinition, Model
from flows_engine.definition.wording import quoted, reason

LARGEST_BYTES: Final = 1 << 18
# A few nested aliases can stand for billions of values, and a large file would keep its reader busy for seconds.
_MOST_VALUES: Final = 10_000
_DEEPEST: Final = 50
_MOST_PROBLEMS: Final = 100
_LONGEST_KEY: Final = 60
_MERGE: Final = "<<"
_NULLS: Final = {"", "~", "null", "Null", "NULL"}

_YAML_HINTS: Final = {
    "'\\t'": "indent with spaces",
    "another document": "write each flow into a file of its own",
    "undefined alias": "put text that begins with * into quotes",
    "'%'": "put text that begins with % into quotes",
    "'`'": "put text that begins with ` into quotes",
    "'@'": "put text that begins with @ into quotes",
}

FieldPath = tuple[str | int, ...]


@dataclass(frozen=True, kw_only=True)
class LoadedDefinition:
    """A definition, where it came from, and what its author should know though nothing is wrong."""

    definition: FlowDefinition
    file: Path
    warnings: tuple[Problem, ...] = ()


@dataclass(frozen=True, kw_only=True)
class YamlMapping:
    """A YAML file whose top is a mapping. Every scalar is the text that stands there; an empty one is None."""

    values: Mapping[str, Any]
    lines: Mapping[FieldPath, int]


def load_definition(path: Path, *, docker_kwargs_allowed: Collection[str] = ()) -> LoadedDefinition:
    """Read one definition. Raises ``DefinitionError`` with all that is wrong in the file.

    ``docker_kwargs_allowed`` are the arguments of Docker that this site allows beyond those that are for all flows.
    """
    document = read_yaml_mapping(path)
    values = {"name": path.stem, **document.values}
    try:
        definition = FlowDefinition.model_validate(values, context={ALLOWED_HERE: frozenset(docker_kwargs_allowed)})
    except ValidationError as error:
        errors = [details for details in error.errors(include_url=False) if not _follows_from_others(details, error)]
        problems = [_problem(path, document.lines, details) for details in errors[:_MOST_PROBLEMS]]
        if len(errors) > _MOST_PROBLEMS:
            left = len(errors) - _MOST_PROBLEMS
            problems.append(
                Problem(file=path, line=None, field="", reason=f"has {left} more problems; mend these first")
            )
        raise DefinitionError(tuple(dict.fromkeys(problems))) from None
    return LoadedDefinition(definition=definition, file=path, warnings=tuple(_warnings(path, document)))


def read_yaml_mapping(path: Path, *, may_be_empty: bool = False) -> YamlMapping:
    """Read a YAML file whose top is a mapping. Raises ``DefinitionError`` where it is not one, or cannot be read.

    With ``may_be_empty`` a file of comments alone is a mapping without keys.
    """
    text = _text(path)
    try:
        node = yaml.compose(text, Loader=_Loader)
    except _TooMuchError as error:
        raise _too_much(path, error) from None
    except yaml.MarkedYAMLError as error:
        # What was begun and never ended is reported at the end of the file; its beginning is what has to be mended.
        mark = error.context_mark if "end of stream" in str(error.problem) else error.problem_mark
        reason = " ".join(part for part in (error.context, error.problem) if part)
        hint = next(
            (hint for sign, hint in _YAML_HINTS.items() if sign in reason), "is a quote or a bracket not closed?"
        )
        raise _whole(path, f"is no YAML: {reason}", line=mark.line + 1 if mark else None, hint=hint) from None
    # PyYAML lets the ValueError of an impossible escape (`"\\U00110000"`) or version number through.
    except (ValueError, OverflowError):
        reason = "is no YAML: an escape like \\U… in a text, or the line %YAML, names what does not exist"
        raise _whole(path, reason) from None
    except yaml.YAMLError as error:
        raise _whole(path, f"is no YAML: {' '.join(str(error).split())[:200]}") from None
    if node is None and may_be_empty:
        return YamlMapping(values={}, lines={})
    if node is None:
        raise _whole(path, "is empty", hint="the smallest flow has the keys triggers, models and destinations")
    if not isinstance(node, yaml.MappingNode):
        raise _whole(
            path, "is not a mapping of keys to values", line=1, hint="begin lines with `key:`, not with a dash"
        )
    reading = _Reading(path, _Bounds())
    try:
        values = reading.mapping(node, ())
    except _TooMuchError as error:
        raise _too_much(path, error) from None
    if reading.problems:
        raise DefinitionError(tuple(reading.problems))
    return YamlMapping(values=MappingProxyType(values), lines=MappingProxyType(reading.lines))


def _text(path: Path) -> str:
    try:
        with path.open("rb") as file:
            content = file.read(LARGEST_BYTES + 1)
    except OSError as error:
        raise _whole(path, f"cannot be read: {error.strerror}") from None
    if len(content) > LARGEST_BYTES:
        raise _whole(path, f"is larger than {LARGEST_BYTES} bytes")
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise _whole(path, "is not in UTF-8", line=line, hint="save it as UTF-8") from None


class _TooMuchError(Exception):
    def __init__(self, *, line: int) -> None:
        super().__init__()
        self.line = line


class _Bounds:
    """Counts values, and how deep they lie in each other. Raises ``_TooMuchError`` where a flow could not mean it."""

    def __init__(self) -> None:
        self._count = 0
        self._size = 0
        self._depth = 0

    @contextmanager
    def around(self, *, line: int, size: int = 0) -> Iterator[None]:
        self._count += 1
        self._depth += 1
        self._size += size
        if self._count > _MOST_VALUES or self._depth > _DEEPEST or self._size > LARGEST_BYTES:
            raise _TooMuchError(line=line)
        yield
        self._depth -= 1


class _Loader(yaml.SafeLoader):
    """PyYAML's reader of nodes, within bounds."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self._bounds = _Bounds()

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        event = self.peek_event()  # type: ignore[no-untyped-call]
        with self._bounds.around(line=event.start_mark.line + 1):
            return super().compose_node(parent, index)


def _is_config(field: FieldPath) -> bool:
    """Tell whether a field is the `config` of a model. A single model may stand without a list."""
    return field[:1] == ("models",) and tuple(part for part in field if isinstance(part, str)) == ("models", "config")


class _Reading:
    """Turns nodes into values, and remembers on which line each field stands."""

    def __init__(self, path: Path, bounds: _Bounds) -> None:
        self._path = path
        self._bounds = bounds
        self.lines: dict[FieldPath, int] = {}
        self.problems: list[Problem] = []

    def value(self, node: yaml.Node, field: FieldPath) -> object:
        size = len(node.value) if isinstance(node, yaml.ScalarNode) else 0
        with self._bounds.around(line=node.start_mark.line + 1, size=size):
            self.lines.setdefault(field, node.start_mark.line + 1)
            if _is_config(field):
                return self._as_written(node, field)
            if isinstance(node, yaml.MappingNode):
                return self.mapping(node, field)
            if isinstance(node, yaml.SequenceNode):
                return [self.value(item, (*field, number)) for number, item in enumerate(node.value)]
            plain = isinstance(node, yaml.ScalarNode) and node.style is None
            return None if plain and node.value in _NULLS else self._text(node, field)

    def _as_written(self, node: yaml.Node, field: FieldPath) -> str:
        """Return a mapping as YAML again: what its values are is for the container to say that reads them."""
        if not isinstance(node, yaml.MappingNode):
            self._problem(node, field, "is no mapping", hint="write keys and values below it, like `threshold: 0.5`")
            return ""
        self.mapping(node, field)  # for what is wrong in it
        return str(yaml.serialize(node, allow_unicode=True))

    def _text(self, node: yaml.Node, field: FieldPath) -> str:
        text: str = node.value
        if "\0" in text:
            self._problem(node, field, "holds a NUL character", hint="leave it out")
        elif not text.isascii() and any("\ud800" <= character <= "\udfff" for character in text):
            reason = "holds half of a character (a lone surrogate)"
            self._problem(node, field, reason, hint="write the character itself")
            return ""
        return text

    def _problem(self, node: yaml.Node, field: FieldPath, reason: str, *, hint: str = "") -> None:
        line = node.start_mark.line + 1
        self.problems.append(Problem(file=self._path, line=line, field=dotted(field), reason=reason, hint=hint))

    def mapping(self, node: yaml.MappingNode, field: FieldPath) -> dict[str, Any]:
        self.lines.setdefault(field, node.start_mark.line + 1)
        values: dict[str, Any] = {}
        merged: list[yaml.Node] = []
        for key, item in node.value:
            if not isinstance(key, yaml.ScalarNode):
                self._problem(key, field, "a key is no text")
                continue
            name = self._text(key, field)
            if name == _MERGE and key.style is None:
                merged.append(item)
            elif name in values:
                self._problem(key, (*field, name), "stands here twice")
            else:
                self.lines[*field, name] = key.start_mark.line + 1
                values[name] = self.value(item, (*field, name))
        # What stands in the mapping itself wins over what is merged into it, the earlier over the later.
        for source in merged:
            for other in self._merged(source, field):
                values = {**other, **values}
        return values

    def _merged(self, node: yaml.Node, field: FieldPath) -> list[dict[str, Any]]:
        sources = node.value if isinstance(node, yaml.SequenceNode) else [node]
        mappings: list[dict[str, Any]] = []
        for source in sources:
            if not isinstance(source, yaml.MappingNode):
                self._problem(node, (*field, _MERGE), "merges mappings, and stands before something else")
                continue
            inner = _Reading(self._path, self._bounds)
            with self._bounds.around(line=source.start_mark.line + 1):
                mappings.append(inner.mapping(source, field))
            self.problems += inner.problems
            for place, line in inner.lines.items():
                self.lines.setdefault(place, line)
        return mappings


def dotted(field: FieldPath) -> str:
    """Return a field as people write it: ``models[0].docker_kwargs.image``."""
    text = "".join(f"[{part}]" if isinstance(part, int) else f".{_shown(part)}" for part in field)
    return text.removeprefix(".")


def _shown(key: str) -> str:
    return key if key.isprintable() and len(key) <= _LONGEST_KEY else quoted(key)


def _whole(path: Path, reason: str, *, line: int | None = None, hint: str = "") -> DefinitionError:
    return DefinitionError((Problem(file=path, line=line, field="", reason=reason, hint=hint),))


def _too_much(path: Path, error: _TooMuchError) -> DefinitionError:
    reason = f"holds more than {_MOST_VALUES} values, or values nested deeper than {_DEEPEST}"
    return _whole(path, reason, line=error.line)


def _problem(path: Path, lines: Mapping[FieldPath, int], details: ErrorDetails) -> Problem:
    field, line = _place(lines, details["loc"])
    kind = details["type"]
    key = next((part for part in reversed(details["loc"]) if isinstance(part, str)), "")
    if kind == "extra_forbidden":
        why, hint = _unknown_key(details["loc"], key)
    elif kind == NOT_ALLOWED:
        why, hint = "is not allowed", reason_for_refusal(key) or ""
    elif kind == "missing":
        why, hint = "is missing", _MISSING.get(key, "")
    elif details["input"] is None:
        why, hint = "has no value", _MISSING.get(key, "give it a value, or leave the key out")
    elif kind == "condition":
        why, hint = details["msg"], ""
    else:
        # A sentence of ours holds its way out; pydantic's needs one.
        why, hint = reason(details), "" if kind == "value_error" else _WRITE.get(key, "")
    return Problem(file=path, line=line, field=dotted(field), reason=why, hint=hint)


def _follows_from_others(details: ErrorDetails, error: ValidationError) -> bool:
    """Tell whether a list is called too short only because its items are wrong, each of which has its own problem."""
    location = details["loc"]
    return details["type"] == "too_short" and any(
        other["loc"][: len(location)] == location and len(other["loc"]) > len(location) for other in error.errors()
    )


_MISSING: Final = {
    "triggers": "write `triggers: []` for a flow that runs only when asked for",
    "models": "name at least one container, like `- docker_kwargs: {image: hello-world}`",
    "docker_kwargs": "write at least `docker_kwargs: {image: …}`",
    "image": "name the Docker image to run",
    "expect": "write a mapping, like {min_files: 1, modality: RTSTRUCT}, or leave the key out",
}
_WRITE: Final = {
    "triggers": "write a list of mappings, like `- Modality: CT`",
    "models": "write a list of containers, like `- docker_kwargs: {image: hello-world}`",
    "docker_kwargs": "write a mapping, like {image: hello-world}",
    "destinations": "write {host: …, port: …, ae_title: …}",
    "environment": "write a mapping, like {NAME: value}",
    "labels": "write a mapping, like {name: value}",
    "tmpfs": "write a mapping of folders to options, like {/scratch: size=1g}",
    "ulimits": "write a list of mappings, like [{name: memlock, soft: -1, hard: -1}]",
    "extra_hosts": "write a mapping of names to addresses, like {licences: 10.0.0.5}",
    "sysctls": "write a mapping, like {net.core.somaxconn: 1024}",
    "storage_opt": "write {size: 10g}",
    "priority": "0 to 5, of which 5 runs first",
    "concurrency_limit": "how many runs of the flow may go on at the same time, 1 at least",
    "gpu_memory": "how many MiB of each of its GPUs it needs, like 8000; without it, all",
    "expect": "write a mapping, like {min_files: 1, modality: RTSTRUCT}",
    "input": "all, or matched: only the instances that meet a trigger",
    "tar_subdir": "write a list of DICOM keywords, like [SeriesInstanceUID], ten at most",
    "modality": "name one, like RTSTRUCT, or a list of them",
    "min_files": "how many files the last model has to leave, 0 to 1000000",
    "port": "1 to 65535",
    "return_to_sender_on_port": "1 to 65535",
    "timeout": "seconds of run time, like 1800; 31 days at most",
}


def _place(lines: Mapping[FieldPath, int], location: tuple[int | str, ...]) -> tuple[FieldPath, int | None]:
    """Return the field that an error means, and its line or that of the nearest part around it.

    pydantic puts names of its own into a location, such as the members of a union: they are no keys of the file, and
    left out unless they come last, where a key may be meant that is not there.
    """
    field: FieldPath = ()
    for number, part in enumerate(location):
        if part == "static_mounts" and (*field, "static_mount") in lines:
            field = (*field, "static_mount")
        # The number of the one item of a list that was written without the list is left out.
        elif (*field, part) in lines or (number == len(location) - 1 and isinstance(part, str)):
            field = (*field, part)
    for length in range(len(field), -1, -1):
        if field[:length] in lines:
            return field, lines[field[:length]]
    return field, None


def _unknown_key(location: tuple[int | str, ...], key: str) -> tuple[str, str]:
    model = _model_at(location[:-1])
    refusal = reason_for_refusal(key)
    if model is DockerKwargs and refusal is not None:
        return "is not allowed", refusal
    if model is Model and (key in DockerKwargs.model_fields or refusal is not None):
        return "is no key of a model", "what is meant for Docker is written below docker_kwargs"
    known = list(model.model_fields)
    close = difflib.get_close_matches(key.lower(), known, n=1, cutoff=0.6)
    return "is no known key", f"did you mean {close[0]}?" if close else f"known are {', '.join(sorted(known))}"


def _model_at(location: tuple[int | str, ...]) -> type[BaseModel]:
    model: type[BaseModel] = FlowDefinition
    for part in location:
        field = model.model_fields.get(str(part))
        if field is not None:
            model = next(iter(_models_in(field.annotation)), model)
    return model


def _models_in(annotation: object) -> Iterator[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for argument in get_args(annotation):
        yield from _models_in(argument)


def _warnings(path: Path, document: YamlMapping) -> Iterator[Problem]:
    models = document.values["models"]
    for number, model in enumerate(models if isinstance(models, list) else [models]):
        for key in ("static_mount", "static_mounts"):
            mounts = model.get(key) or []
            for mount in [mounts] if isinstance(mounts, str) else mounts:
                if isinstance(mount, str) and mount.endswith(":ro"):
                    field: FieldPath = ("models", number, key) if isinstance(models, list) else ("models", key)
                    yield Problem(
                        file=path,
                        line=document.lines.get(field),
                        field=dotted(field),
                        reason=f"{mount!r} ends with :ro, which means nothing: static mounts are read-only",
                        hint="leave it out",
                    )
