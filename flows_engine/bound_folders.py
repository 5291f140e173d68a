"""The folders of a container on the engine of this host: mounted as they are."""

from __future__ import annotations

from pathlib import Path

import docker
from docker.errors import NotFound
from docker.types import Mount

from flows_engine.host_paths import EngineMount, HostPaths
from flows_engine.interfaces import ContainerSpec


def bind_mounts(client: docker.DockerClient, spec: ContainerSpec, *, engine_url: str) -> list[Mount]:
    """Return what docker-py is told. Raises ``HostPathError`` for a folder that is not the engine's, too."""
    paths = HostPaths(engine_url=engine_url, mounts_of=lambda number: _mounts(client, number))
    return [
        Mount(target=mount.target, source=str(paths.of(mount.source)), type="bind", read_only=mount.read_only)
        for mount in spec.mounts
    ]


def _mounts(client: docker.DockerClient, container_id: str) -> list[EngineMount]:
    try:
        found = client.api.inspect_container(container_id)
    except NotFound:
        return []
    return [
        EngineMount(source=Path(mount["Source"]), destination=Path(mount["Destination"]))
        for mount in found.get("Mounts") or ()
        if mount.get("Source")
    ]
