"""A flow definition as a value: frozen, typed, and only ever valid.

The YAML reader hands over every scalar as the text its author wrote (``version: 1.10`` stays ``1.10``), and Prefect
hands back JSON with numbers and booleans; both become the same values here.
"""

from __future__ import annotations

import hashlib
import json
import re
from ipaddress import ip_address
from pathlib import PurePosixPath
from typing import Annotated, Final, Literal, Self

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    GetJsonSchemaHandler,
    ValidationInfo,
    field_validator,
    model_serializer,
    model_validator,
)
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema

from flows_engine.definition import naming
from flows_engine.definition.docker_kwargs import DockerKwargs, container_folder
from flows_engine.definition.expect import Expect
from flows_engine.definition.leniency import Text, as_list, boolean_or_text, truth_count_or_text, without_nul
from flows_engine.definition.step_graph import Step, StepGraph, chain, step_graph
from flows_engine.definition.trigger import Trigger
from flows_engine.definition.trigger_key import parse_keyword

_KIND_OF_GPU: Final = re.compile(r"[A-Za-z][A-Za-z0-9_-]{0,63}")
_LABEL: Final = r"[A-Za-z0-9_]([A-Za-z0-9_-]{0,61}[A-Za-z0-9_])?"
_HOST_NAME: Final = re.compile(rf"(?=.{{1,253}}\Z){_LABEL}(\.{_LABEL})*")
# Eight GPUs of seven MIG devices each are 56.
_MOST_GPUS: Final = 64
_MOST_GPU_MEMORY_MIB: Final = 10_000_000
# What Prefect refuses in a name (/ % & < >), and what would end the path of its API's address, where a name stands.
_NOT_IN_A_NAME: Final = "/%&<>?#\\"

# A name of `input_mounts` is part of a path.
_MOUNT_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,62}")
_MOST_MOUNTS: Final = 100
CONFIG_FOLDER: Final = "/config"
"""Where a container finds its `config`, as config.yaml."""
_MOST_RETRIES: Final = 20
_MOST_RETRY_DELAYS: Final = 50
_LONGEST_RETRY_DELAY_SECONDS: Final = 86_400

# Each is a folder name of up to 64 characters, of a path that may have some thousand.
_MOST_LEVELS: Final = 10

# A month; beyond about 290 years the clocks of threads and sockets overflow.
_LONGEST_TIMEOUT_SECONDS: Final = 31 * 86_400
# Prefect's database holds the limit in 32 bits.
_MOST_RUNS_AT_ONCE: Final = 1_000_000

Port = Annotated[int, Field(ge=1, le=65535)]


def ae_title(written: str) -> str:
    """Return a title without the spaces around it, which mean nothing (PS3.5 table 6.2-1).

    Raises ``ValueError`` for what is no title: 1 to 16 printable ASCII characters, none of them a backslash.
    """
    title = written.strip(" ")
    if not 1 <= len(title) <= 16 or not (title.isascii() and title.isprintable()) or "\\" in title:
        raise ValueError("is no AE title: 1 to 16 ASCII characters, without a backslash")
    return title


AETitle = Annotated[Text, AfterValidator(ae_title)]


def host(written: str) -> str:
    """Return a host name or address without the spaces around it. Raises ``ValueError`` for what is neither."""
    name = written.strip(" ")
    if _HOST_NAME.fullmatch(name):
        return name
    if name.isprintable() and " " not in name:
        try:
            ip_address(name)
        except ValueError:
            pass
        else:
            return name
    before, _, port = name.partition(":")
    if _HOST_NAME.fullmatch(before) and port.isdigit():
        raise ValueError("is a host with a port; the port is a key of its own, `port`")
    raise ValueError("is no host name or address like pacs.example or 10.0.0.5")


Host = Annotated[Text, AfterValidator(host)]


def kind_of_gpu(written: str) -> str:
    """Return the name of a kind of GPU, which ends the name of a work pool. Raises ``ValueError`` for what is none."""
    if not isinstance(boolean_or_text(written), str) or not _KIND_OF_GPU.fullmatch(written):
        raise ValueError("is no kind of GPU like a100: a letter, then up to 63 letters, digits, _ and -")
    return written


def _is_none(value: object) -> bool:
    return value is None


def _is_empty(value: object) -> bool:
    return not value


def _is_all(value: object) -> bool:
    return value == "all"


LevelKeyword = Annotated[Text, AfterValidator(parse_keyword)]


class _Part(BaseModel):
    """A part of a definition: cannot be changed, and says no to keys it does not know."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class StaticMount(_Part):
    """A folder or archive of ``STATIC_DIR`` that a model sees, read-only, at ``target``. Written ``source:target``."""

    source: str
    target: str

    @model_validator(mode="before")
    @classmethod
    def _from_text(cls, value: object) -> object:
        if isinstance(value, dict) and value.keys() != {"source", "target"}:
            raise ValueError('is a mapping; write "SOURCE:/place/in/the/container", in quotes and without a space')
        if not isinstance(value, str):
            return value
        source, _, target = value.removesuffix(":ro").partition(":")
        if not target or ":" in target:
            raise ValueError('is no static mount; write "SOURCE:/place/in/the/container", which is always read-only')
        return {"source": source.strip(), "target": target.strip()}

    @model_serializer
    def _to_text(self) -> str:
        return f"{self.source}:{self.target}"

    @classmethod
    def __get_pydantic_json_schema__(cls, _schema: CoreSchema, _handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        return {
            "type": "string",
            "title": "StaticMount",
            "description": "SOURCE:/place, SOURCE being below STATIC_DIR.",
            "pattern": r":\s*/",
        }

    @field_validator("source")
    @classmethod
    def _inside_static_dir(cls, source: str) -> str:
        path = PurePosixPath(source)
        if path.is_absolute() or ".." in path.parts or not path.parts:
            raise ValueError("lies outside STATIC_DIR; write the path from there, like AwesomeModel1")
        if not source.isprintable():
            raise ValueError("holds characters that cannot be seen")
        return str(path)

    @field_validator("target")
    @classmethod
    def _place(cls, target: str) -> str:
        return container_folder(target)


def mounts(written: dict[str, str]) -> dict[str, str]:
    """Return names and the folders of a container that stand for them. Raises ``ValueError`` for what is neither."""
    if not 1 <= len(written) <= _MOST_MOUNTS:
        raise ValueError(f"names {len(written)} folders; it may be 1 to {_MOST_MOUNTS}")
    for name, folder in written.items():
        if not _MOUNT_NAME.fullmatch(name):
            raise ValueError(f"{name[:80]!r} is no name: letters, digits, _ and -, 63 at most, a letter or digit first")
        try:
            container_folder(folder)
        except ValueError as error:
            raise ValueError(f"the folder of {name}: {error}") from None
    return {name: container_folder(folder) for name, folder in written.items()}


def _without_nul_or_none(text: str | None) -> str | None:
    return None if text is None else without_nul(text)


def _config_text(value: object) -> object:
    # The YAML reader hands over text, as it was written; who makes a definition in Python has a mapping. JSON is YAML.
    return json.dumps(value, indent=2) if isinstance(value, dict) else value


# Left out of what is dumped where they are not set, so that definitions without them keep their digest.
_Delay = Annotated[float, Field(ge=0, le=_LONGEST_RETRY_DELAY_SECONDS, allow_inf_nan=False)]
Mounts = Annotated[dict[str, str] | None, AfterValidator(lambda written: None if written is None else mounts(written))]


class Model(_Part):
    """One container of a flow: reads ``input_dir``, writes ``output_dir``. ``timeout`` is in seconds of run time,
    ``gpu_memory`` in MiB of each GPU.

    In a flow whose models are not simply run one after another, ``input_mounts`` and ``output_mounts`` stand in the
    place of these two: names, each with the folder of the container that stands for it.
    """

    docker_kwargs: DockerKwargs
    gpu: Annotated[bool | int | str, BeforeValidator(truth_count_or_text)] = False
    # Left out of what is dumped where it is not set, so that definitions without it keep their digest.
    gpu_memory: int | None = Field(default=None, ge=1, le=_MOST_GPU_MEMORY_MIB, exclude_if=_is_none)
    input_dir: str = "/input"
    output_dir: str = "/output"
    input_mounts: Mounts = Field(default=None, exclude_if=_is_none)
    output_mounts: Mounts = Field(default=None, exclude_if=_is_none)
    input_writable: bool = False
    pull_before_exec: bool = True
    config: Annotated[str | None, BeforeValidator(_config_text), AfterValidator(_without_nul_or_none)] = Field(
        default=None, exclude_if=_is_none
    )
    """The text of a YAML file for the container."""
    retries: int | None = Field(default=None, ge=0, le=_MOST_RETRIES, exclude_if=_is_none)
    retry_delay_seconds: Annotated[tuple[_Delay, ...] | None, BeforeValidator(as_list)] = Field(
        default=None, min_length=1, max_length=_MOST_RETRY_DELAYS, exclude_if=_is_none
    )
    """How long to wait before each further attempt, the last one again and again."""
    timeout: float = Field(default=1800, gt=0, le=_LONGEST_TIMEOUT_SECONDS, allow_inf_nan=False)
    static_mounts: Annotated[tuple[StaticMount, ...], BeforeValidator(as_list)] = ()

    @model_validator(mode="before")
    @classmethod
    def _one_static_mount(cls, value: object) -> object:
        if not isinstance(value, dict) or "static_mount" not in value:
            return value
        if "static_mounts" in value:
            raise ValueError("has static_mount and static_mounts, which are the same; keep one of them")
        return {("static_mounts" if key == "static_mount" else key): item for key, item in value.items()}

    @field_validator("input_dir", "output_dir")
    @classmethod
    def _folder(cls, folder: str) -> str:
        return container_folder(folder)

    @field_validator("gpu")
    @classmethod
    def _count_or_kind_of_gpu(cls, gpu: naming.Gpu) -> naming.Gpu:
        if isinstance(gpu, str):
            if not _KIND_OF_GPU.fullmatch(gpu):
                raise ValueError(
                    "is neither true (one GPU) nor false nor a number of GPUs nor a kind of GPU, which begins with a"
                    " letter"
                )
        elif not isinstance(gpu, bool) and not 2 <= gpu <= _MOST_GPUS:
            raise ValueError(
                f"is no number of GPUs from 1 to {_MOST_GPUS}; `gpu: false` is none, and which ones there are is said"
                " by the setting GPUS"
            )
        return gpu

    @field_validator("gpu_memory")
    @classmethod
    def _memory_of_some_gpu(cls, gpu_memory: int | None, info: ValidationInfo) -> int | None:
        if gpu_memory is not None and info.data.get("gpu") is False:
            raise ValueError("is of a model without a GPU; write `gpu: true` beside it, or leave it out")
        return gpu_memory

    @property
    def gpu_count(self) -> int:
        """How many GPUs it holds while it runs."""
        return 1 if isinstance(self.gpu, str) else int(self.gpu)

    @model_validator(mode="after")
    def _one_way_to_name_folders(self) -> Self:
        if (self.input_mounts is None) != (self.output_mounts is None):
            has, lacks = ("input", "output") if self.output_mounts is None else ("output", "input")
            raise ValueError(f"has {has}_mounts and no {lacks}_mounts; the two go together")
        if self.input_mounts is not None:
            for key, default in (("input", "/input"), ("output", "/output")):
                if getattr(self, f"{key}_dir") != default:
                    raise ValueError(f"has {key}_dir and {key}_mounts, which stand for the same; keep one of them")
        return self

    @model_validator(mode="after")
    def _places_apart(self) -> Self:
        places = [PurePosixPath(place) for place in self._own_places()]
        places += dict.fromkeys(PurePosixPath(mount.target) for mount in self.static_mounts)
        places += (PurePosixPath(container_folder(folder)) for folder in self.docker_kwargs.tmpfs or {})
        for number, place in enumerate(places):
            for other in places[number + 1 :]:
                if place == other:
                    raise ValueError(f"{place} stands for two folders; give each a place of its own")
                if place.is_relative_to(other) or other.is_relative_to(place):
                    raise ValueError(f"{place} and {other} lie in each other; give each folder a place of its own")
        return self

    def _own_places(self) -> list[str]:
        config = [CONFIG_FOLDER] if self.config is not None else []
        if self.input_mounts is None or self.output_mounts is None:
            return [self.input_dir, self.output_dir, *config]
        return [*self.input_mounts.values(), *self.output_mounts.values(), *config]


class Node(_Part):
    """A DICOM application entity that results are sent to."""

    host: Host
    port: Port
    ae_title: AETitle


def _something(value: object) -> object:
    if value is None:
        raise ValueError("has no value")
    return value


class FlowDefinition(_Part):
    """What should run on which study, and where the results go."""

    name: Text = Field(max_length=200)
    version: Text = Field(default="", max_length=100)
    priority: int = Field(default=0, ge=0, le=5)
    concurrency_limit: int | None = Field(default=None, ge=1, le=_MOST_RUNS_AT_ONCE, exclude_if=_is_none)
    triggers: Annotated[tuple[Trigger, ...], BeforeValidator(as_list)]
    # Left out of what is dumped where they say nothing, so that definitions without them keep their digest.
    input: Literal["all", "matched"] = Field(default="all", exclude_if=_is_all)
    """Which instances of a study the models get: all, or only those that meet all conditions of some trigger."""
    tar_subdir: Annotated[tuple[LevelKeyword, ...] | None, BeforeValidator(as_list)] = Field(
        default=None, max_length=_MOST_LEVELS, exclude_if=_is_none
    )
    """The folder levels of the input of its models; None: those of the site."""
    models: Annotated[tuple[Model, ...], BeforeValidator(as_list)] = Field(min_length=1)
    destinations: Annotated[tuple[Node, ...], BeforeValidator(as_list)] = ()
    return_to_sender_on_port: Annotated[tuple[Port, ...], BeforeValidator(as_list)] = ()
    model_decides: Annotated[tuple[Literal["skip_send", "destinations"], ...], BeforeValidator(as_list)] = Field(
        default=(), exclude_if=_is_empty
    )
    """On what the last model may decide, by its ``result.json``."""
    expect: Annotated[Expect | None, BeforeValidator(_something)] = Field(default=None, exclude_if=_is_none)

    @field_validator("name")
    @classmethod
    def _name_that_prefect_takes(cls, name: str) -> str:
        stripped = name.strip()
        if not stripped.strip("."):
            raise ValueError("is no name for a flow; it needs a letter or a digit")
        wrong = "".join(dict.fromkeys(character for character in stripped if character in _NOT_IN_A_NAME))
        if wrong:
            raise ValueError(f"is no name for a flow; leave out {' '.join(wrong)}")
        if not stripped.isprintable():
            raise ValueError("is no name for a flow; leave out the characters that cannot be seen")
        return stripped

    @field_validator("version")
    @classmethod
    def _version_on_one_line(cls, version: str) -> str:
        if not version.isprintable():
            raise ValueError("is no version; leave out the characters that cannot be seen")
        return version

    @field_validator("input")
    @classmethod
    def _something_to_match(cls, value: str, info: ValidationInfo) -> str:
        if value == "matched" and info.data.get("triggers") == ():
            raise ValueError("has no triggers to match; write `input: all`, or a trigger")
        return value

    @property
    def has_own_input(self) -> bool:
        """Whether its models get something else than the folder of the study as it lies in the store."""
        return self.input != "all" or self.tar_subdir is not None

    @field_validator("models")
    @classmethod
    def _one_kind_of_gpu(cls, models: tuple[Model, ...]) -> tuple[Model, ...]:
        kinds = sorted({model.gpu for model in models if isinstance(model.gpu, str)})
        if len(kinds) > 1:
            raise ValueError(f"name different kinds of GPU ({', '.join(kinds)}); one worker runs all models of a flow")
        return models

    @field_validator("models")
    @classmethod
    def _models_that_can_be_run(cls, models: tuple[Model, ...]) -> tuple[Model, ...]:
        _graph(models)
        return models

    @property
    def graph(self) -> StepGraph:
        """Which model reads what which other one writes."""
        return _graph(self.models)

    @property
    def digest(self) -> str:
        """The SHA-256 of what the definition says, in hexadecimal: another definition has another digest.

        It is part of the key under which a run is created once, so it must not change with the program: a key of the
        YAML that is new here counts only where it is used.
        """
        canonical = json.dumps(self.model_dump(mode="json"), sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(canonical.encode()).hexdigest()

    @property
    def expected(self) -> Expect | None:
        """What is looked for in the last output before anything is sent.

        None where nothing is: its author asked for nothing, and it is sent nowhere.
        """
        if self.expect is None and (self.destinations or self.return_to_sender_on_port):
            return Expect()
        return self.expect

    @property
    def work_pool(self) -> str:
        """The Prefect work pool whose workers can run all models."""
        return naming.work_pool(tuple(model.gpu for model in self.models))


def _graph(models: tuple[Model, ...]) -> StepGraph:
    """Raises ``ValueError`` where the models cannot be run; the message names them."""
    titles = [f"model {number} ({model.docker_kwargs.image})" for number, model in enumerate(models, start=1)]
    plain = [title for title, model in zip(titles, models, strict=True) if model.input_mounts is None]
    if len(plain) == len(models):
        return step_graph(chain(titles, places=[(model.input_dir, model.output_dir) for model in models]))
    if plain:
        raise ValueError(
            f"have input_mounts and output_mounts, except {', '.join(plain)}; give them to all, or to none"
        )
    return step_graph(
        [
            Step(title=title, reads=model.input_mounts or {}, writes=model.output_mounts or {})
            for title, model in zip(titles, models, strict=True)
        ]
    )
