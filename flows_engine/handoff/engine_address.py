"""Where the Docker engine is, and by that, how folders come into its containers. Pure.

An engine that listens on a UNIX socket is asked for bind mounts of our own folders (see ``host_paths``). One that is
reached over a network lives, as far as anybody can tell, on another host: folders are copied to it and back, also
where the address is one of this very host.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final
from urllib.parse import SplitResult, urlsplit

DEFAULT_ENGINE_URL: Final = "unix:///var/run/docker.sock"

_LOCAL: Final = ("unix", "http+unix")
_REMOTE: Final = ("tcp", "http", "https")
_PORT: Final = 2375
_TLS_PORT: Final = 2376


@dataclass(frozen=True, kw_only=True)
class EngineAddress:
    """An engine, and what is needed to speak with it. Raises ``ValueError`` for a URL that cannot be used."""

    url: str = DEFAULT_ENGINE_URL
    certificates: Path | None = None
    """The folder with ca.pem, cert.pem and key.pem, by which engine and client know each other; None: without TLS."""
    options: Mapping[str, object] = field(default_factory=dict)
    """Further arguments of docker-py's client, as a block of Prefect may have them."""

    def __post_init__(self) -> None:
        """Look at the URL once, where it comes in."""
        checked_engine_url(self.url)

    @property
    def is_remote(self) -> bool:
        """Whether folders are copied into containers and back. If not, they are mounted."""
        return is_remote(self.url)

    @property
    def client_url(self) -> str:
        """The URL with a port, which docker-py wants to be told: Docker's own is 2375, with TLS 2376."""
        parts = urlsplit(self.url)
        if parts.scheme not in ("tcp", "http", "https") or parts.port is not None:
            return self.url
        is_secured = self.certificates is not None or parts.scheme == "https"
        return parts._replace(netloc=f"{parts.netloc}:{_TLS_PORT if is_secured else _PORT}").geturl()


def is_remote(url: str) -> bool:
    """Tell whether an engine's URL leads over a network."""
    return urlsplit(url).scheme in _REMOTE


def checked_engine_url(url: str) -> str:
    """Return ``url``. Raises ``ValueError`` where no engine of ours could be behind it."""
    parts = urlsplit(url)
    if parts.scheme == "ssh":
        raise ValueError(
            f"{url!r} leads over ssh, which is not spoken here: forward a port (ssh -N -L"
            " 127.0.0.1:2375:/var/run/docker.sock HOST) and write tcp://127.0.0.1:2375, or let the engine listen with"
            " TLS"
        )
    if parts.scheme not in _LOCAL + _REMOTE or "://" not in url:
        raise ValueError(f"{url!r} is no address of an engine: write unix:///path/of/socket or tcp://host:port")
    if parts.scheme in _REMOTE and not _has_host_and_port(parts):
        raise ValueError(f"{url!r} has no host, or a port that is none: write tcp://host:port")
    if parts.username is not None or parts.query or parts.fragment:
        raise ValueError("an engine's address has a host, a port and a path, and nothing else")
    return url


def _has_host_and_port(parts: SplitResult) -> bool:
    try:
        return bool(parts.hostname) and parts.port != 0
    except ValueError:
        return False
