"""A connection to the Docker engine at an address, and what it means where there is none."""

from __future__ import annotations

import json
import re
import socket
import ssl
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit

import docker
import requests
from docker.constants import DEFAULT_NUM_POOLS
from docker.errors import APIError, DockerException
from docker.tls import TLSConfig
from docker.types import CancellableStream
from requests.adapters import HTTPAdapter
from urllib3.connection import HTTPConnection

from flows_engine.errors import EngineMisconfiguredError, EngineUnavailableError
from flows_engine.handoff.engine_address import EngineAddress

UNREACHABLE: Final = (
    requests.exceptions.ConnectionError,
    requests.exceptions.Timeout,
    requests.exceptions.ChunkedEncodingError,
)
"""What requests raises where nobody answers, or no longer."""

NO_SPACE: Final = "no space left on device"
"""What is part of an engine's error where its disk is full."""

_TIMEOUT_SECONDS: Final = 60.0
_PROBE_SECONDS: Final = 2.0
_PIECE_BYTES: Final = 1024 * 1024

# A model may be silent for hours, which firewalls take for a connection that nobody wants; and a host that lost its
# power says nothing ever again.
_KEEP_ALIVE: Final = [
    *HTTPConnection.default_socket_options,
    (socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1),
    (socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 30),
    (socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, 10),
    (socket.IPPROTO_TCP, socket.TCP_KEEPCNT, 3),
]

# What Python's ssl and Go's net/http say -> what a person has to put right.
_WITHOUT_TLS: Final = re.compile(r"HTTP request to an HTTPS server", re.I)
_WITH_TLS: Final = (
    (
        r"certificate[_ ]verify[_ ]failed",
        "{folder}/ca.pem (DOCKER_CERT_PATH) does not vouch for it under this name{reason}",
    ),
    (
        r"alert[_ ](?:.*certificate|.*unknown[_ ]ca|.*decrypt)",
        "it does not accept {folder}/cert.pem (DOCKER_CERT_PATH); its own authority has to have signed that",
    ),
    (
        r"wrong[_ ]version[_ ]number|record[_ ]layer[_ ]failure",
        "it does not speak TLS; take DOCKER_TLS_VERIFY out, or let it listen with --tlsverify",
    ),
    (
        r"\bPEM\b|X509|KEY_VALUES|NO_START_LINE|ASN1",
        "{folder} (DOCKER_CERT_PATH) has a ca.pem, cert.pem or key.pem that is no PEM, or another certificate's key",
    ),
)
_REASON: Final = re.compile(r"certificate verify failed: ([^(]+)")


class _Api(docker.APIClient):  # type: ignore[misc] # docker-py is not typed
    def __init__(self, *, is_remote: bool, **arguments: object) -> None:
        super().__init__(**arguments)
        if is_remote:
            for scheme in ("http://", "https://"):
                self.mount(scheme, _KeptAlive(pool_connections=DEFAULT_NUM_POOLS))

    def archive(self, container: str, path: str) -> requests.Response:
        """Ask for ``path`` of a container as an archive.

        docker-py's own way gives no response that could be closed, and the engine holds the container until then; nor
        does it look whether anything comes.
        """
        url = self._url("/containers/{0}/archive", container)
        response: requests.Response = self._get(url, params={"path": path}, stream=True)
        self._raise_for_status(response)
        return response

    def container_events(self, container_id: str, *, until: int | None = None) -> CancellableStream:
        """Listen to a container's start and end: all that the engine remembers, then, up to ``until``, what happens.

        docker-py's own way sets no limit to how long the engine takes to answer, and tells of a refusal only where the
        events are read. Without ``until``, a time by the engine's clock, silence is taken for hours.
        """
        filters = docker.utils.convert_filters({"container": container_id, "event": ["start", "kill", "die"]})
        # Since ever, which is no time that clocks could disagree about; the engine remembers a few hundred events.
        parameters = {"since": 1, "until": until, "filters": filters}
        response: requests.Response = self._get(self._url("/events"), params=parameters, stream=True)
        self._raise_for_status(response)
        if until is None:
            self._disable_socket_timeout(self._get_raw_response_socket(response))
        # They are few and short, and one is known as soon as its line is there.
        return CancellableStream(map(json.loads, response.iter_lines(chunk_size=1)), response)

    def merge_environment_settings(self, *arguments: object, **named: object) -> dict[str, object]:
        # The bundle of authorities for the internet (REQUESTS_CA_BUNDLE) has no say about an engine.
        return {**super().merge_environment_settings(*arguments, **named), "verify": self.verify}


class _Client(docker.DockerClient):  # type: ignore[misc] # docker-py is not typed
    def __init__(self, *, is_remote: bool, **arguments: object) -> None:
        self.api = _Api(is_remote=is_remote, **arguments)


class _KeptAlive(HTTPAdapter):
    def init_poolmanager(self, connections: int, maxsize: int, block: bool = False, **named: Any) -> None:  # noqa: ANN401 - as requests has it
        super().init_poolmanager(connections, maxsize, block, **named, socket_options=_KEEP_ALIVE)


@contextmanager
def connected(address: EngineAddress) -> Iterator[docker.DockerClient]:
    """Give a client of the engine.

    Raises ``EngineMisconfiguredError`` where the address or the certificates are wrong, and
    ``EngineUnavailableError`` where the engine does not answer, or goes away meanwhile.
    """
    try:
        client = _Client(
            is_remote=address.is_remote,
            **{
                "version": "auto",
                "timeout": _TIMEOUT_SECONDS,
                **address.options,
                "base_url": address.client_url,
                **({"tls": _tls(address.certificates)} if address.certificates and address.is_remote else {}),
            },
        )
    except (DockerException, OSError, *UNREACHABLE) as error:
        raise _no_engine(address, error) from error
    except (TypeError, ValueError) as error:
        raise EngineMisconfiguredError(f"the client of the engine at {address.url} cannot be made: {error}") from error
    try:
        yield client
    except UNREACHABLE as error:
        raise _no_engine(address, error) from error
    finally:
        client.close()


@contextmanager
def archive_of(client: docker.DockerClient, container: str, path: str) -> Iterator[Iterator[bytes]]:
    """Give the archive of ``path`` in a container, piece by piece, in constant memory.

    Taking a piece raises ``EngineUnavailableError`` where the engine goes away, or says nothing for a minute.
    """
    response = client.api.archive(container, path)
    try:
        yield _pieces(response)
    finally:
        response.close()


def _pieces(response: requests.Response) -> Iterator[bytes]:
    try:
        yield from response.iter_content(_PIECE_BYTES)
    except OSError as error:  # what requests raises is one, too
        raise EngineUnavailableError(f"the Docker engine ceased to send an output: {one_line(error)}") from error


def explanation(error: APIError) -> str:
    """Return what the engine says, in one line."""
    return one_line(error.explanation or error)


def one_line(text: object) -> str:
    """Return ``text`` in one line that is not too long."""
    return " ".join(str(text).split())[:400]


def _tls(folder: Path) -> TLSConfig:
    authority, certificate, key = (folder / name for name in ("ca.pem", "cert.pem", "key.pem"))
    for file in (authority, certificate, key):
        try:
            file.open("rb").close()
        except OSError as error:
            raise EngineMisconfiguredError(
                f"DOCKER_CERT_PATH: {file} cannot be read: {error.strerror}; put ca.pem, cert.pem and key.pem of the"
                " Docker engine there"
            ) from error
    return TLSConfig(client_cert=(str(certificate), str(key)), ca_cert=str(authority), verify=True)


def _no_engine(address: EngineAddress, error: Exception) -> EngineUnavailableError | EngineMisconfiguredError:
    text = str(error)
    if address.certificates and "SSL" in text and "EOF" in text:
        text += _alert(address.client_url, address.certificates)
    if wrong := _what_is_wrong(address, text):
        return EngineMisconfiguredError(f"the Docker engine at {address.url} cannot be spoken with: {wrong}")
    if "Permission denied" in text:
        return EngineUnavailableError(
            f"no permission to use the Docker engine at {address.url}: add this worker's user to the group"
            " docker (usermod -aG docker <user>) and log in again"
        )
    way_out = (
        "see that it runs there, and that the network lets us through"
        if address.is_remote
        else "start it (systemctl start docker) or set DOCKER_HOST"
    )
    return EngineUnavailableError(f"no Docker engine answers at {address.url}: {way_out}")


def _alert(url: str, folder: Path) -> str:
    """Return why the engine ended the connection. Who writes at once may miss what it says of our certificate."""
    there = urlsplit(url)
    try:
        context = ssl.create_default_context(cafile=folder / "ca.pem")
        context.load_cert_chain(folder / "cert.pem", folder / "key.pem")
        with (
            socket.create_connection((there.hostname or "", there.port or 0), timeout=_PROBE_SECONDS) as connection,
            context.wrap_socket(connection, server_hostname=there.hostname) as secured,
        ):
            secured.recv(1)
    except OSError as error:
        return str(error)
    return ""


def _what_is_wrong(address: EngineAddress, text: str) -> str | None:
    """Return what a person has to put right for TLS; None where that is not what failed."""
    if not address.is_remote:
        return None
    if _WITHOUT_TLS.search(text):
        return "it wants TLS; set DOCKER_TLS_VERIFY=1, and DOCKER_CERT_PATH to the folder with the certificates"
    if address.certificates is None or "SSL" not in text:
        return None
    told = _REASON.search(text)
    reason = f" ({told.group(1).strip()})" if told else ""
    found = (sentence for pattern, sentence in _WITH_TLS if re.search(pattern, text, re.IGNORECASE))
    sentence = next(found, None)
    return sentence and sentence.format(folder=address.certificates, reason=reason)
