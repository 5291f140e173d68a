"""The folders of a container on the engine of this host: mounted as they are, and ours again when it has ended."""

from __future__ import annotations

import os
import uuid
from contextlib import suppress
from pathlib import Path
from typing import Final

import docker
from docker.errors import APIError, DockerException, NotFound
from docker.types import Mount

from flows_engine.folder_tree import remove_tree
from flows_engine.host_paths import EngineMount, HostPaths
from flows_engine.interfaces import BindMount, ContainerSpec
from flows_engine.ownership import handing_over, strangers

_END_SECONDS: Final = 30.0


def bind_mounts(client: docker.DockerClient, spec: ContainerSpec, *, engine_url: str) -> list[Mount]:
    """Return what docker-py is told. Raises ``HostPathError`` for a folder that is not the engine's, too."""
    paths = HostPaths(engine_url=engine_url, mounts_of=lambda number: _mounts(client, number))
    return [
        Mount(target=mount.target, source=str(paths.of(mount.source)), type="bind", read_only=mount.read_only)
        for mount in spec.mounts
    ]


def take_over(client: docker.DockerClient, spec: ContainerSpec) -> None:
    """Make what the container wrote this process's own, where that is not root: to be read, and to be removed.

    Where it cannot be done, who reads it or removes it says so.
    """
    user = os.geteuid()
    if user == 0:
        return
    with suppress(DockerException, OSError):
        with suppress(APIError):  # it has ended, as a rule
            client.api.kill(spec.name)
        client.api.wait(spec.name, timeout=_END_SECONDS)
        for mount in spec.mounts:
            if not mount.read_only:
                _hand_over(client, spec.name, mount, user=user)


def _hand_over(client: docker.DockerClient, name: str, mount: BindMount, *, user: int) -> None:
    before = None
    # Each time a folder may be seen into that could not be before.
    while (found := strangers(mount.source, user=user)) and found != before:
        names_folder = f"names-{uuid.uuid4().hex}"
        archive = handing_over(found, user=user, group=os.getegid(), names_folder=names_folder)
        try:
            client.api.put_archive(name, mount.target, archive)
        finally:
            remove_tree(mount.source / names_folder)
        before = found


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
