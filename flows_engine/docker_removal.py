"""Containers and volumes that are to be gone, whoever made them and whether they still run."""

from __future__ import annotations

from contextlib import suppress
from http import HTTPStatus
from typing import Final

import docker
from docker.errors import APIError, NotFound

from flows_engine.docker_connection import explanation
from flows_engine.errors import ContainerRefusedError

_REMOVAL_SECONDS: Final = 30.0


def remove_container(client: docker.DockerClient, name: str) -> None:
    """Kill and remove a container, and the volumes that its image made. It is gone on return, or was not there."""
    try:
        client.api.remove_container(name, force=True, v=True)
    except NotFound:
        return
    except APIError as error:
        if error.status_code != HTTPStatus.CONFLICT:
            raise ContainerRefusedError(f"container {name} cannot be removed: {explanation(error)}") from error
        # Somebody else is removing it.
        with suppress(NotFound):
            client.api.wait(name, timeout=_REMOVAL_SECONDS, condition="removed")


def remove_volumes(client: docker.DockerClient, *, label: str, value: str) -> None:
    """Remove every volume that carries ``label=value``. Its containers have to be gone."""
    found = client.api.volumes(filters={"label": f"{label}={value}"}).get("Volumes")
    for volume in found or ():
        try:
            with suppress(NotFound):
                client.api.remove_volume(volume["Name"])
        except APIError as error:
            raise ContainerRefusedError(
                f"volume {volume['Name']} cannot be removed from the Docker engine: {explanation(error)}"
            ) from error
