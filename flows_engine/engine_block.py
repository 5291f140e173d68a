"""The block ``DockerHost`` of prefect-docker, as it is in Prefect -> where the Docker engine is.

What a block said last is kept in a file: an installation that stops has no Prefect any more, and still has to remove
its containers.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

from flows_engine.errors import EngineMisconfiguredError, EngineUnavailableError
from flows_engine.handoff.engine_address import EngineAddress

_CLIENT_OPTIONS: Final = ("version", "timeout", "max_pool_size")


def address_of_block(name: str, *, site: EngineAddress, kept: Path) -> EngineAddress:
    """Return where the engine of block ``name`` is. What the block leaves open is as ``site`` has it.

    ``kept`` is the file that has what a block said last; that is returned where Prefect cannot be asked. Raises
    ``EngineMisconfiguredError`` where there is no such block, or it cannot be used, and ``EngineUnavailableError``
    where Prefect cannot be asked and nothing is kept.
    """
    said = _said(name, kept)
    if settled := {"base_url", "tls"} & said["client_kwargs"].keys():
        raise EngineMisconfiguredError(
            f"block docker-host/{name}: client_kwargs: {', '.join(sorted(settled))} cannot be there; the block has its"
            " base_url, and DOCKER_TLS_VERIFY and DOCKER_CERT_PATH say how TLS is used"
        )
    options = {key: said[key] for key in _CLIENT_OPTIONS if said[key] is not None}
    try:
        return replace(site, url=said["base_url"] or site.url, options={**options, **said["client_kwargs"]})
    except ValueError as error:
        raise EngineMisconfiguredError(f"block docker-host/{name}: base_url: {error}") from error


def _said(name: str, path: Path) -> dict[str, Any]:
    try:
        said = _ask(name)
    except EngineUnavailableError:
        if (before := _kept(path, name)) is None:
            raise
        return before
    _keep(path, name, said)
    return said


def _ask(name: str) -> dict[str, Any]:
    # They take a second to import, and few sites have such a block.
    import httpx  # noqa: PLC0415
    from prefect.settings import PREFECT_API_URL  # noqa: PLC0415
    from prefect_docker import DockerHost  # noqa: PLC0415

    if not PREFECT_API_URL.value():
        # Prefect would start a server of its own, which has no block.
        raise EngineUnavailableError(f"block docker-host/{name} cannot be loaded: PREFECT_API_URL is not set")
    try:
        block = DockerHost.load(name, _sync=True)
    except httpx.HTTPError as error:
        raise EngineUnavailableError(
            f"block docker-host/{name} cannot be loaded from Prefect at {PREFECT_API_URL.value()}:"
            f" {type(error).__name__}"
        ) from error
    except (ValueError, RuntimeError) as error:
        raise EngineMisconfiguredError(_why_not(name, error)) from error
    return {
        "base_url": block.base_url,
        "client_kwargs": block.client_kwargs,
        **{key: getattr(block, key) for key in _CLIENT_OPTIONS},
    }


def _why_not(name: str, error: Exception) -> str:
    sentence = f"DOCKER_HOST_BLOCK: Prefect's block docker-host/{name}"
    if "Unable to find block document" in str(error):
        return f"{sentence} does not exist; make it in Prefect's UI (Blocks, Docker Host), or correct the name"
    return f"{sentence} cannot be loaded: {' '.join(str(error).split())[:300]}"


def _keep(path: Path, name: str, said: Mapping[str, Any]) -> None:
    text = json.dumps({"name": name, **said})
    if _text(path) == text:
        return
    unfinished = path.with_suffix(f".{os.getpid()}")
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    unfinished.touch(mode=0o600)
    unfinished.write_text(text)
    unfinished.replace(path)


def _kept(path: Path, name: str) -> dict[str, Any] | None:
    try:
        said: dict[str, Any] = json.loads(_text(path) or "{}")
    except json.JSONDecodeError:
        return None
    return said if said.pop("name", None) == name else None


def _text(path: Path) -> str | None:
    try:
        return path.read_text()
    except OSError:
        return None
