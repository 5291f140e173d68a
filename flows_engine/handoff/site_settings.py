"""A site's settings: one flat namespace, the same in every room, read once where a process begins.

Defaults, then every ``*.yaml`` of the folder ``CONF_DIR`` in alphabetical order, then the environment: the later wins.
"""

from __future__ import annotations

import difflib
import json
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Final, Literal

from pydantic import (
    AfterValidator,
    AliasGenerator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    SecretStr,
    ValidationError,
    ValidationInfo,
    field_serializer,
    field_validator,
)

from flows_engine.definition.docker_kwargs import allowable
from flows_engine.definition.errors import DefinitionError
from flows_engine.definition.loading import read_yaml_mapping
from flows_engine.definition.schema import AETitle, kind_of_gpu
from flows_engine.definition.text_forms import Size
from flows_engine.definition.trigger_key import parse_keyword
from flows_engine.definition.wording import reason
from flows_engine.handoff.engine_address import DEFAULT_ENGINE_URL, EngineAddress, checked_engine_url, is_remote

_INSTALLED: Final = Path("/opt/DicomFlow")
_CONF_DIR: Final = _INSTALLED / "conf.d"
_ADDRESS: Final = re.compile(r"[^\s:]+:[0-9]{1,5}|\[[0-9a-fA-F:.]+\]:[0-9]{1,5}")
_BLOCK_NAME: Final = re.compile(r"[a-z0-9]+(?:-[a-z0-9]+)*")
_SHORTEST_SECRET: Final = 12
_GPU_ID: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9:/-]{0,79}")
_SECRETS: Final = {"STOW_TOKEN", "STOW_PASSWORD"}


class SettingsError(ValueError):
    """Settings cannot be used. Each line of the message names the place, the setting, the reason and the way out."""


def _folder(name: str) -> Path:
    """Return where a folder is by default: of the installation, where there is one, else below the current folder."""
    installed = _INSTALLED / name
    return installed if installed.is_dir() else Path.cwd() / name


def _words(value: object) -> object:
    """Return the words of a text (``0 2 5``, ``0,2,5`` or JSON) as a list; anything else as it is."""
    if not isinstance(value, str):
        return [] if value is None else value
    if value.lstrip().startswith("["):
        try:
            return json.loads(value)
        except (json.JSONDecodeError, RecursionError):
            raise ValueError("begins like a JSON list, and is none") from None
    return value.replace(",", " ").split()


def _texts(value: object) -> list[str]:
    words = _words(value)
    return [str(word) for word in words] if isinstance(words, list | tuple) else [str(words)]


def _keywords(value: object) -> list[str]:
    return [parse_keyword(word) for word in _texts(value)]


def _docker_kwargs(value: object) -> list[str]:
    return list(dict.fromkeys(allowable(word) for word in _texts(value)))


def _gpu_ids(value: object) -> list[str]:
    ids = _texts(value)
    for gpu in ids:
        if not _GPU_ID.fullmatch(gpu):
            raise ValueError(f"{gpu!r} is no id of a GPU, like 0 or GPU-8f6c…; `nvidia-smi -L` lists them")
    if len(set(ids)) < len(ids):
        raise ValueError("a GPU is named twice")
    return ids


def _absolute(value: object) -> object:
    """Return a folder in its absolute form, so that it means the same in every process."""
    if not isinstance(value, str | Path):
        return value
    if not str(value).strip():
        raise ValueError("is empty; name a folder")
    if not str(value).isprintable():
        raise ValueError("holds characters that cannot be seen, or are no UTF-8")
    try:
        return Path(str(value).strip()).expanduser().absolute()
    except RuntimeError:
        raise ValueError("begins with ~, and there is no such home; write the whole path") from None


def _absolute_or_none(value: object) -> object:
    return None if value is None or value == "" else _absolute(value)


def _none_if_empty(value: object) -> object:
    return None if isinstance(value, str) and not value.strip() else value


def _is_said(value: object) -> object:
    """Docker's own client takes every text but the empty one for a yes."""
    return bool(value.strip()) if isinstance(value, str) else value


def _engine_url_or_none(written: str | None) -> str | None:
    return None if written is None else checked_engine_url(written.strip())


def _block_name(written: str | None) -> str | None:
    if written is not None and not _BLOCK_NAME.fullmatch(written):
        raise ValueError(f"{written!r} is no name of a block, like my-engine")
    return written


def _kind_of_gpu_or_none(written: str | None) -> str | None:
    return None if written is None else kind_of_gpu(written)


def _log_level(value: object) -> object:
    names = {"DEBUG": 10, "INFO": 20, "WARNING": 30, "ERROR": 40, "CRITICAL": 50}
    return names.get(value.upper(), value) if isinstance(value, str) else value


def _addresses_by_ae_title(value: object) -> object:
    """Return a mapping, which JSON may hold, of AE titles to ``host:port``."""
    if isinstance(value, str):
        try:
            value = json.loads(value or "{}")
        except (json.JSONDecodeError, RecursionError):
            raise ValueError("is no mapping; write it as in {PACS: 'pacs.hospital:104'}") from None
    if not isinstance(value, Mapping):
        raise ValueError("is no mapping; write it as in {PACS: 'pacs.hospital:104'}")  # noqa: TRY004  # as above
    for title, address in value.items():
        if not (isinstance(title, str) and 0 < len(title.strip()) <= 16 and title.isascii() and title.isprintable()):
            raise ValueError("a key is no AE title")
        if not (isinstance(address, str) and _ADDRESS.fullmatch(address) and int(address.rpartition(":")[2]) < 65536):
            raise ValueError(f"the address of {title} is not host:port")
    return {title.strip(): address for title, address in value.items()}


def _secret(value: object) -> object:
    """Return a secret that may stand in a header. What is wrong with one is said without it."""
    if value is None or value == "":
        return None
    if not isinstance(value, str | SecretStr):
        raise ValueError("is not text; write it between quotes")  # noqa: TRY004  # what pydantic takes for a finding
    text = value.get_secret_value() if isinstance(value, SecretStr) else value
    if len(text) < _SHORTEST_SECRET:
        raise ValueError(f"is shorter than {_SHORTEST_SECRET} characters")
    if not text.isascii() or not text.isprintable() or text != text.strip():
        raise ValueError("holds characters other than the visible ones of ASCII")
    return text


def _user_name(name: str | None) -> str | None:
    if name is not None and (":" in name or not name.isprintable()):
        raise ValueError("holds a colon, or characters that cannot be seen")
    return name


Secret = Annotated[SecretStr | None, BeforeValidator(_secret)]
Folder = Annotated[Path, BeforeValidator(_absolute)]
Seconds = Annotated[float, Field(ge=0, le=86_400, allow_inf_nan=False)]


class SiteSettings(BaseModel):
    """Every setting with its default. In files and in the environment the names are in upper case."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", alias_generator=AliasGenerator(alias=str.upper), populate_by_name=True
    )

    data_dir: Folder = Field(default_factory=lambda: _folder("data"))
    """Everything that is received and made. One file system."""
    flow_directory: Folder = Field(default_factory=lambda: _folder("flow_definitions"))
    static_dir: Folder = Field(default_factory=lambda: _folder("static"))
    log_dir: Annotated[Path | None, BeforeValidator(_absolute_or_none)] = None
    """Default: ``DATA_DIR/logs``."""
    ae_title: AETitle = "STORESCP"
    ae_hostname: str = "localhost"
    ae_port: int = Field(default=10000, ge=0, le=65535)
    tls_port: Annotated[int | None, BeforeValidator(_none_if_empty)] = Field(default=None, ge=0, le=65535)
    """A second port, on which TLS is spoken. Without it, and with TLS_CERT, ``AE_PORT`` itself speaks TLS."""
    tls_cert: Annotated[Path | None, BeforeValidator(_absolute_or_none)] = None
    """The certificate that the gateway shows, in PEM form, with those that lead to its authority."""
    tls_key: Annotated[Path | None, BeforeValidator(_absolute_or_none)] = None
    tls_ca: Annotated[Path | None, BeforeValidator(_absolute_or_none)] = None
    """The authorities whose certificates peers may show."""
    tls_client_certificate: Literal["required", "optional", "none"] = "required"
    """Whether a peer has to show a certificate; without ``tls_ca`` there is none that could be trusted."""
    allowed_peers: Annotated[tuple[str, ...], BeforeValidator(_texts)] = ()
    """Who may send: AE titles, addresses or networks, or both as ``AE_TITLE@10.1.2.0/24``. Default: everyone.

    ``STOW_PORT`` looks at the addresses alone, where there are any.
    """
    require_called_ae: bool = False
    """Whether a peer has to call ``AE_TITLE``; by default any name will do."""
    max_associations: int = Field(default=200, ge=1)
    max_associations_per_peer: int = Field(default=100, ge=1)
    """How many of them may come from one address. Both hold for the connections of ``STOW_PORT`` as well."""
    pynetdicom_log_level: Literal["none", "standard", "debug"] = "standard"
    log_level: Annotated[int, BeforeValidator(_log_level)] = Field(default=20, ge=0, le=50)
    tar_subdir: Annotated[tuple[str, ...], BeforeValidator(_keywords)] = ()
    gpus: Annotated[tuple[str, ...], BeforeValidator(_gpu_ids)] = ()
    gpu_slots: Annotated[int | None, BeforeValidator(_none_if_empty)] = Field(default=None, ge=1)
    """How many flow runs each worker of a pool ``gpu…`` of this host takes at once. Default: the number of ``GPUS``."""
    gpu_kind: Annotated[str | None, BeforeValidator(_none_if_empty), AfterValidator(_kind_of_gpu_or_none)] = None
    """What the GPUs of this host are called in flows: it serves the pool ``gpu-<kind>``, too."""
    cpu_slots: int = Field(default_factory=lambda: max(1, (os.cpu_count() or 1) // 2), ge=1)
    """How many flow runs of the pool ``cpu`` this host runs at once."""
    default_mem_limit: Size | None = None
    """The memory that a container may take where its flow says nothing, like 8g. Default: all that the host has."""
    docker_host: Annotated[str | None, BeforeValidator(_none_if_empty), AfterValidator(_engine_url_or_none)] = None
    """Where the Docker engine listens, as Docker's own client has it. Default: the socket of this host's engine."""
    docker_host_block: Annotated[str | None, BeforeValidator(_none_if_empty), AfterValidator(_block_name)] = None
    """The block ``DockerHost`` of Prefect that says where the engine listens. What it leaves open is as above."""
    docker_tls_verify: Annotated[bool, BeforeValidator(_is_said)] = False
    """Whether the engine is spoken to with TLS, and each of the two has to prove who it is."""
    docker_cert_path: Annotated[Path | None, BeforeValidator(_absolute_or_none)] = None
    """The folder with ca.pem, cert.pem and key.pem. Default, with ``DOCKER_TLS_VERIFY``: ``~/.docker``."""
    disk_reserve_bytes: int = Field(default=2**30, ge=0)
    """How many bytes of the file system of ``DATA_DIR`` are to stay free; 0: none.

    Senders are told to wait while there is less. A model that leaves less is killed, and its run fails; none starts
    where less is left already. The disk on which the Docker engine keeps its containers is watched by the same measure
    while models run, unless that engine is on another host.
    """
    disk_watermark_percent: Annotated[float, Field(gt=0, le=100)] = 100.0
    """How much of that file system may be in use before senders are told to wait. Default: all but the reserve."""
    group_by: Literal["association", "study", "patient"] = "association"
    """What is one study to match: all that one association sends of one patient, or all that several send of one study
    or patient before ``study_idle_seconds`` pass in silence."""
    study_idle_seconds: Seconds = 30.0
    late_arrival: Literal["rerun", "ignore", "new"] = "rerun"
    """What becomes of instances of a study that was closed, where ``group_by`` is study or patient: a new version of
    the study with all that came so far, nothing, or a study of their own."""
    incomplete_seconds: Seconds = 300.0
    """How long what an aborted association has sent waits for its sender to come again."""
    on_conflict: Literal["keep_both", "replace", "reject"] = "keep_both"
    """What becomes of an instance whose UID came before with other content."""
    durability: Literal["instance", "association", "none"] = "instance"
    """When what is received is forced onto the disk: before each Success, before the release is answered, or never."""
    receiver_processes: int = Field(default_factory=lambda: min(4, os.cpu_count() or 1), ge=1, le=64)
    """How many processes share the associations."""
    c_store_path: Literal["fast", "stock"] = "fast"
    """Who receives the objects: the gateway's own path, or pynetdicom's, which is many times slower."""
    docker_kwargs_allowed: Annotated[tuple[str, ...], BeforeValidator(_docker_kwargs)] = ()
    """Names of arguments of docker-py's ``containers.create`` that flows may use beyond those that all may, like
    ``cap_add``. Asked where a flow is read, and again by the worker on whose host it runs."""
    incomplete: Literal["hold", "process"] = "hold"
    """What becomes of a study whose last association did not end by a release, once it has waited."""
    commitment_peers: Annotated[Mapping[str, str], BeforeValidator(_addresses_by_ae_title)] = Field(
        default_factory=dict
    )
    """Where a peer takes reports on storage commitment that come after its association: ``host:port`` by AE title."""
    metrics_hostname: str = "localhost"
    metrics_port: Annotated[int | None, BeforeValidator(_none_if_empty)] = Field(default=None, ge=0, le=65535)
    """Where ``/healthz``, ``/readyz`` and ``/metrics`` are answered. Default: nowhere."""
    stow_hostname: str = "localhost"
    stow_port: Annotated[int | None, BeforeValidator(_none_if_empty)] = Field(default=None, ge=0, le=65535)
    """Where studies are taken over HTTP (DICOMweb STOW-RS). Default: nowhere."""
    stow_token: Secret = None
    stow_user: Annotated[str | None, BeforeValidator(_none_if_empty), AfterValidator(_user_name)] = None
    stow_password: Secret = None
    stow_anonymous: bool = False
    """Whether whoever reaches ``STOW_PORT`` may send."""
    send_retry_delays_seconds: Annotated[tuple[Seconds, ...], BeforeValidator(_words), Field(max_length=50)] = (
        5.0,
        30.0,
        120.0,
    )
    """How long to wait before each further attempt to reach a destination."""

    @field_validator("docker_cert_path")
    @classmethod
    def _with_verification_only(cls, folder: Path | None, info: ValidationInfo) -> Path | None:
        host, block = info.data.get("docker_host"), info.data.get("docker_host_block")
        leads_out = block is not None or (host is not None and is_remote(host))
        if folder is not None and leads_out and not info.data.get("docker_tls_verify"):
            # Docker's programs differ: some speak without TLS then, others with an engine that proves nothing.
            raise ValueError(f"{folder} is used with DOCKER_TLS_VERIFY only; set that to 1, or take this out")
        return folder

    @field_serializer("docker_tls_verify", when_used="json")
    def _as_docker_writes_it(self, value: bool) -> str:
        return "1" if value else ""

    @property
    def engine_address(self) -> EngineAddress:
        """Where the Docker engine is, as far as the settings say it themselves."""
        return EngineAddress(
            url=self.docker_host or DEFAULT_ENGINE_URL,
            certificates=(self.docker_cert_path or Path.home() / ".docker") if self.docker_tls_verify else None,
        )

    @property
    def gpu_runs_at_once(self) -> int:
        """``GPU_SLOTS``, or its default."""
        return self.gpu_slots or max(1, len(self.gpus))

    def as_environment(self) -> dict[str, str]:
        """Return the settings as environment variables, for a process that is to have the same."""
        values = self.model_dump(mode="json", by_alias=True, exclude_none=True)
        # A dump has stars in their place.
        for name, value in self:
            if isinstance(value, SecretStr):
                values[name.upper()] = value.get_secret_value()
        return {
            name: json.dumps(value) if isinstance(value, list | dict) else str(value) for name, value in values.items()
        }


@dataclass(frozen=True, kw_only=True)
class LoadedSettings:
    """The settings, Prefect's own ones that stood in a file, and what is worth a word though nothing is wrong."""

    settings: SiteSettings
    prefect_settings: Mapping[str, str]
    warnings: tuple[str, ...]


def load_site_settings(environ: Mapping[str, str]) -> LoadedSettings:
    """Read the settings of a site. Raises ``SettingsError`` with everything that is wrong."""
    names = [name.upper() for name in SiteSettings.model_fields]
    reading = _Reading(names)
    named = environ.get("CONF_DIR")
    folder = Path(named) if named else _CONF_DIR
    if named and not folder.is_dir():
        raise SettingsError(f"environment: CONF_DIR: {folder} is no folder; name one that is there, or take it out")
    for path in _conf_files(folder):
        reading.take_file(path)
    for name, value in environ.items():
        reading.take_environment(name, value)
    return reading.result()


def _conf_files(folder: Path) -> list[Path]:
    try:
        return sorted(path for path in folder.iterdir() if path.suffix == ".yaml" and not path.name.startswith("."))
    except FileNotFoundError:
        return []
    except OSError as error:
        raise SettingsError(f"{folder}: cannot be read as the folder CONF_DIR: {error.strerror}") from error


class _Reading:
    def __init__(self, names: list[str]) -> None:
        self._names = names
        self._values: dict[str, Any] = {}
        self._origins: dict[str, str] = {}
        self._prefect: dict[str, str] = {}
        self._problems: list[str] = []
        self._warnings: list[str] = []

    def take_file(self, path: Path) -> None:
        try:
            document = read_yaml_mapping(path, may_be_empty=True)
        except DefinitionError as error:
            self._problems += map(str, error.problems)
            return
        for name, value in document.values.items():
            self._take(name, value, origin=f"{path}:{document.lines[name,]}", from_file=True)

    def take_environment(self, name: str, value: str) -> None:
        if name in self._names:
            self._take(name, value, origin="environment", from_file=False)
        elif name.startswith("RABBIT_"):
            self._no_longer_used(name, origin="environment")

    def _take(self, name: str, value: object, *, origin: str, from_file: bool) -> None:
        if name in self._names:
            self._values[name], self._origins[name] = value, origin
        elif name.startswith("RABBIT_"):
            self._no_longer_used(name, origin=origin)
        elif name.startswith("PREFECT_") and from_file:
            if isinstance(value, str):
                self._prefect[name] = value
            else:
                self._problems.append(
                    f"{origin}: {name}: is not text; write the value as Prefect's documentation has it"
                )
        else:
            close = difflib.get_close_matches(name.upper(), self._names, n=1)
            hint = f"did you mean {close[0]}?" if close else f"known are {', '.join(self._names)}, and PREFECT_…"
            self._problems.append(f"{origin}: {name}: is no setting ({hint})")

    def _no_longer_used(self, name: str, *, origin: str) -> None:
        self._warnings.append(f"{origin}: {name}: is no longer used; there is no RabbitMQ any more")

    def result(self) -> LoadedSettings:
        try:
            settings = SiteSettings.model_validate(self._values)
        except ValidationError as error:
            for details in error.errors(include_url=False):
                name = str(details["loc"][0])
                origin = self._origins.get(name, "default")
                if name in _SECRETS:
                    details["input"] = None  # which the reason would quote
                self._problems.append(f"{origin}: {name}: {reason(details)}")
        if self._problems:
            raise SettingsError("\n".join(self._problems))
        return LoadedSettings(
            settings=settings, prefect_settings=dict(self._prefect), warnings=tuple(dict.fromkeys(self._warnings))
        )
