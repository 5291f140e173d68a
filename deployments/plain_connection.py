"""Talking to Prefect's server without importing Prefect, where that cannot make a difference.

Importing Prefect takes longer than a deployment of two hundred definitions that are there already. Its client honours
dozens of settings, from the environment, profiles and files. Where all that is set is known here, a plain client does
what Prefect's own would do; in any other case, and where a plain request fails, Prefect's own is taken.
"""

from __future__ import annotations

import os
import ssl
import tomllib
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

import httpx

from deployments.api_credentials import api_headers
from deployments.server_api import Connection
from deployments.server_errors import told_in_one_line
from deployments.services import NO_AUTHORITY

_TIMEOUT_SECONDS: Final = 60.0  # Prefect's own
_API_URL: Final = "PREFECT_API_URL"
# A plain client takes these from the environment, and from nowhere else.
_UNDERSTOOD: Final = frozenset({"PREFECT_API_KEY", "PREFECT_API_AUTH_STRING"})
# What says nothing of how a client talks to its server. A plain client does not try again: Prefect's own then does.
_OF_OTHERS: Final = frozenset(
    {"PREFECT_HOME", "PREFECT_PROFILE", "PREFECT_PROFILES_PATH", "PREFECT_CLIENT_MAX_RETRIES"}
)
# http is not verified; nor does a plain client speak anything else.
_OF_TLS: Final = frozenset({"PREFECT_API_SSL_CERT_FILE", "PREFECT_API_TLS_INSECURE_SKIP_VERIFY"})
_PARTS_OF_OTHERS: Final = tuple(
    f"PREFECT_{part}_"
    for part in ("SERVER", "API_DATABASE", "UI", "LOGGING", "WORKER", "RUNNER", "FLOWS", "TASKS", "RESULTS", "CLI")
)


@dataclass(frozen=True, kw_only=True)
class PlainAddress:
    """Where a server answers, and the headers by which it knows us."""

    api_url: str
    headers: Mapping[str, str]


class PlainConnection:
    """A ``Connection`` by plain HTTP. Entered, it keeps its connection open."""

    def __init__(self, address: PlainAddress) -> None:
        # Never needed but for a proxy that is reached by https; reading all authorities would take 40 ms.
        trust = ssl.create_default_context(cafile=NO_AUTHORITY)
        self._http = httpx.Client(
            base_url=address.api_url, headers=dict(address.headers), timeout=_TIMEOUT_SECONDS, verify=trust
        )

    def __enter__(self) -> Self:
        self._http.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._http.__exit__(kind, error, trace)

    def request(self, method: str, path: str, *, json: Any = None) -> httpx.Response:  # noqa: ANN401
        """Return the answer; raise ``httpx.HTTPError`` where there is none, or none of success. Asks once."""
        return self._http.request(method, path, json=json).raise_for_status()


def on_the_server(work: Callable[[Connection], None]) -> None:
    """Do ``work`` on the server that Prefect's settings name. It is begun anew if a plain connection fails.

    Raises ``ServerUnreachableError``.
    """
    address = plain_address(os.environ, set_in_files=names_set_in_files(os.environ, Path()))
    if address is not None:
        try:
            with PlainConnection(address) as plain:
                work(plain)
        except (httpx.HTTPError, httpx.InvalidURL, ValueError):
            pass  # Prefect's own client tries again, follows, has tokens; and what it says in the end is told
        else:
            return
    from prefect.client.orchestration import get_client  # noqa: PLC0415 - takes seconds

    with get_client(sync_client=True) as client, told_in_one_line(client.api_url):
        work(client)


def plain_address(environ: Mapping[str, str], *, set_in_files: Collection[str] | None) -> PlainAddress | None:
    """Return the server that Prefect's client would talk to, and as whom; None where only Prefect can know. Pure.

    ``set_in_files`` are the settings that files make, None where that cannot be told.
    """
    url = environ.get(_API_URL, "")
    # Prefect's settings have the same name in lower case; such a one is left to Prefect.
    set_here = {name for name in environ if name.upper().startswith("PREFECT_")} - _UNDERSTOOD
    if set_in_files is None or not url.startswith("http://"):
        return None
    if not all(_says_nothing(name) for name in (*set_here, *set_in_files)):
        return None
    return PlainAddress(api_url=url, headers=api_headers(environ))


def _says_nothing(name: str) -> bool:
    # The address is that of the environment, which goes before all files.
    return name == _API_URL or name in _OF_OTHERS or name in _OF_TLS or name.startswith(_PARTS_OF_OTHERS)


def names_set_in_files(environ: Mapping[str, str], folder: Path) -> frozenset[str] | None:
    """Return the names of what Prefect, started in ``folder``, finds set in files; None where that cannot be told.

    Those of every profile are among them, whichever is in use.
    """
    try:
        if (folder / ".env").exists() or (folder / "prefect.toml").exists():
            return None
        project = _toml(folder / "pyproject.toml")
        if "prefect" in project.get("tool", {}):
            return None
        return frozenset(_set_in_profiles(_toml(_profiles_file(environ))))
    except (OSError, ValueError, RuntimeError, AttributeError):
        return None


def _set_in_profiles(content: Mapping[str, Any]) -> Iterator[str]:
    for profile in content.get("profiles", {}).values():
        yield from profile


def _profiles_file(environ: Mapping[str, str]) -> Path:
    if named := environ.get("PREFECT_PROFILES_PATH"):
        return Path(named)
    home = environ.get("PREFECT_HOME")
    return (Path(home) if home else Path.home() / ".prefect") / "profiles.toml"


def _toml(file: Path) -> dict[str, Any]:
    try:
        with file.open("rb") as content:
            return tomllib.load(content)
    except FileNotFoundError:
        return {}
