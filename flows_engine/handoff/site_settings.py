"""A site's settings: one flat namespace, the same in every room, read once where a process begins.

Defaults, then every ``*.yaml`` of the folder ``CONF_DIR`` in alphabetical order, then the environment: the later wins.
"""

from __future__ import annotations

import difflib
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Final, Literal

from pydantic import AliasGenerator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationError
from pydicom.datadict import tag_for_keyword

from flows_engine.definition.errors import DefinitionError
from flows_engine.definition.loading import read_yaml_mapping

_INSTALLED: Final = Path("/opt/DicomFlow")
_CONF_DIR: Final = _INSTALLED / "conf.d"
_LATER: Final = {"GROUP_BY", "STUDY_IDLE_SECONDS", "ALLOWED_PEERS"}


class SettingsError(ValueError):
    """Settings cannot be used. Each line of the message names the place, the setting, the reason and the way out."""


def _folder(name: str) -> Path:
    """Return where a folder is by default: of the installation, where there is one, else below the current folder."""
    installed = _INSTALLED / name
    return installed if installed.is_dir() else Path.cwd() / name


def _words(value: Any) -> Any:
    """Return the words of a text (``0 2 5``, ``0,2,5`` or JSON) as a list; anything else as it is."""
    if not isinstance(value, str):
        return [] if value is None else value
    if value.lstrip().startswith("["):
        try:
            return json.loads(value)
        except json.JSONDecodeError:
            raise ValueError("begins like a JSON list, and is none") from None
    return value.replace(",", " ").split()


def _texts(value: Any) -> Any:
    words = _words(value)
    return [str(word) for word in words] if isinstance(words, list | tuple) else [str(words)]


def _keywords(value: Any) -> Any:
    words = _texts(value)
    for word in words:
        if tag_for_keyword(word) is None:
            raise ValueError(f"{word!r} is no DICOM keyword")
    return words


def _log_level(value: Any) -> Any:
    names = {"DEBUG": 10, "INFO": 20, "WARNING": 30, "ERROR": 40, "CRITICAL": 50}
    return names.get(value.upper(), value) if isinstance(value, str) else value


class SiteSettings(BaseModel):
    """Every setting with its default. In files and in the environment the names are in upper case."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", alias_generator=AliasGenerator(alias=str.upper), populate_by_name=True
    )

    data_dir: Path = Field(default_factory=lambda: _folder("data"))
    """Everything that is received and made. One file system."""
    flow_directory: Path = Field(default_factory=lambda: _folder("flow_definitions"))
    static_dir: Path = Field(default_factory=lambda: _folder("static"))
    log_dir: Path | None = None
    """Default: ``DATA_DIR/logs``."""
    ae_title: str = Field(default="STORESCP", min_length=1, max_length=16, pattern=r"^[ -\[\]-~]*[!-\[\]-~][ -\[\]-~]*$")
    ae_hostname: str = "localhost"
    ae_port: int = Field(default=10000, ge=0, le=65535)
    pynetdicom_log_level: Literal["none", "standard", "debug"] = "standard"
    log_level: Annotated[int, BeforeValidator(_log_level)] = Field(default=20, ge=0, le=50)
    tar_subdir: Annotated[tuple[str, ...], BeforeValidator(_keywords)] = ()
    gpus: Annotated[tuple[str, ...], BeforeValidator(_texts)] = ()
    cpu_slots: int = Field(default_factory=lambda: max(1, (os.cpu_count() or 1) // 2), ge=1)
    """How many flow runs of the pool ``cpu`` this host runs at once."""
    incomplete: Literal["hold", "process"] = "hold"
    """What becomes of a study whose association did not end by a release."""
    send_retry_delays_seconds: Annotated[tuple[float, ...], BeforeValidator(_words)] = (5, 30, 120)
    """How long to wait before each further attempt to reach a destination."""

    def as_environment(self) -> dict[str, str]:
        """Return the settings as environment variables, for a process that is to have the same."""
        values = self.model_dump(mode="json", by_alias=True, exclude_none=True)
        return {name: json.dumps(value) if isinstance(value, list) else str(value) for name, value in values.items()}


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
        raise SettingsError(f"environment: CONF_DIR: {folder} is no folder")
    for path in sorted(folder.glob("*.yaml")) if folder.is_dir() else []:
        reading.take_file(path)
    for name, value in environ.items():
        reading.take_environment(name, value)
    return reading.result()


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
            document = read_yaml_mapping(path)
        except DefinitionError as error:
            self._problems += map(str, error.problems)
            return
        for name, value in document.values.items():
            self._take(name, value, origin=f"{path}:{document.lines[name,]}", from_file=True)

    def take_environment(self, name: str, value: str) -> None:
        if name in self._names or name in _LATER:
            self._take(name, value, origin="environment", from_file=False)
        elif name.startswith("RABBIT_"):
            self._no_longer_used(name, origin="environment")

    def _take(self, name: str, value: Any, *, origin: str, from_file: bool) -> None:
        if name in self._names:
            self._values[name], self._origins[name] = value, origin
        elif name in _LATER:
            self._problems.append(f"{origin}: {name}: is not available in this version; take it out")
        elif name.startswith("RABBIT_"):
            self._no_longer_used(name, origin=origin)
        elif name.startswith("PREFECT_") and from_file:
            self._prefect[name] = str(value)
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
                reason = details["msg"].removeprefix("Value error, ")
                self._problems.append(f"{self._origins.get(name, 'default')}: {name}: {reason}; it says {details['input']!r}")
        if self._problems:
            raise SettingsError("\n".join(self._problems))
        return LoadedSettings(
            settings=settings, prefect_settings=dict(self._prefect), warnings=tuple(dict.fromkeys(self._warnings))
        )
