"""The folders of a container on an engine that cannot mount ours: copied into volumes there, and back.

Volumes, because the engine copies nothing into a container with a read-only root, and because what a model writes does
not become a layer of its container. They are filled by a second container, the *carrier*, which is never started: it
may write where the model may not, and has each volume at a place of ours, whatever the model's places lie in.
"""

from __future__ import annotations

import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import docker
from docker.errors import APIError
from docker.types import Mount

from flows_engine.disk_reserve import DiskReserve
from flows_engine.docker_connection import NO_SPACE, archive_of, explanation
from flows_engine.docker_removal import remove_container, remove_volumes
from flows_engine.errors import ContainerRefusedError, NoSpaceError, RunHaltedError, WorkspaceError
from flows_engine.folder_tree import remove_tree
from flows_engine.interfaces import BindMount, ContainerSpec
from flows_engine.received_archive import unpack_received
from flows_engine.sent_archive import SentFolder, sent_archive

COPIES_LABEL: Final = "dicomflow.copies-for"
"""The name of the container that carriers and volumes are there for. It has no such label itself."""

_FOLDER: Final = ".dicomflow"


@dataclass(frozen=True, kw_only=True)
class CopiedFolders:
    """What a container is to mount, and the way back from there."""

    client: docker.DockerClient
    carrier: str
    volumes: tuple[tuple[BindMount, str], ...]

    @property
    def mounts(self) -> list[Mount]:
        """What docker-py is told of the model's container."""
        return [_mount(volume, target=mount.target, read_only=mount.read_only) for mount, volume in self.volumes]

    def bring_back(
        self, *, reserve_bytes: int, on_notice: Callable[[str], None], is_halted: Callable[[], bool]
    ) -> None:
        """Put what the container left in place of the folders it came from: all of a folder, or nothing.

        ``reserve_bytes`` of their disk stay free. Raises ``WorkspaceError``, ``NoSpaceError``,
        ``EngineUnavailableError`` and ``RunHaltedError``.
        """
        skipped = Counter[str]()
        for number, (mount, _) in enumerate(self.volumes):
            if mount.is_kept and not mount.read_only:
                skipped.update(self._replace(mount.source, number, reserve_bytes, is_halted))
        for kind, count in sorted(skipped.items()):
            on_notice(f"{count} entries of kind {kind} in the output are left on the Docker engine")

    def _replace(
        self, folder: Path, number: int, reserve_bytes: int, is_halted: Callable[[], bool]
    ) -> Mapping[str, int]:
        disk = DiskReserve(folder=folder.parent, reserve_bytes=reserve_bytes)
        try:
            # Beside it, so that it takes its place by one rename; whoever prepares the step again removes it.
            unfinished = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
        except OSError as error:
            raise WorkspaceError(f"no folder can be made below {folder.parent}: {error.strerror}") from error
        try:
            with archive_of(self.client, self.carrier, f"/{_FOLDER}/{number}") as chunks:
                arriving = _while_there_is_room(_until_halted(chunks, is_halted), disk)
                skipped = unpack_received(arriving, unfinished, reserve_bytes=reserve_bytes)
            _take_place(unfinished, folder)
        finally:
            with suppress(OSError):
                remove_tree(unfinished)
        return skipped


def _take_place(unfinished: Path, folder: Path) -> None:
    try:
        unfinished.chmod(folder.stat().st_mode & 0o777)
        remove_tree(folder)
        unfinished.rename(folder)
    except OSError as error:
        raise WorkspaceError(f"{folder} cannot be replaced by what a model left: {error.strerror}") from error


def copy_folders(client: docker.DockerClient, spec: ContainerSpec, *, is_halted: Callable[[], bool]) -> CopiedFolders:
    """Copy the folders of ``spec`` into volumes of the engine, with all in them.

    Raises ``WorkspaceError`` for what cannot be read, ``NoSpaceError``, ``ContainerRefusedError``, ``RunHaltedError``,
    and docker's own errors. Whatever it made is
    removed by ``remove_copies``, also where it raises.
    """
    labels = {**spec.labels, COPIES_LABEL: spec.name}
    volumes = tuple((mount, client.api.create_volume(labels=labels)["Name"]) for mount in spec.mounts)
    carrier = client.containers.create(
        spec.image,
        # It is never started, but an image without a command is not taken without one.
        command=["true"],
        name=f"{spec.name}-carrier",
        labels=labels,
        mounts=[_mount(volume, target=f"/{_FOLDER}/{number}") for number, (_, volume) in enumerate(volumes)],
        network_mode="none",
        platform=spec.options.get("platform"),
    )
    archive = sent_archive(
        [
            SentFolder(source=mount.source, place=f"{_FOLDER}/{number}", is_writable=not mount.read_only)
            for number, mount in enumerate(spec.mounts)
        ]
    )
    try:
        client.api.put_archive(carrier.id, "/", _until_halted(archive, is_halted))
    except APIError as error:
        # From there on the engine names a file, and the folders of a study may be named after a patient.
        reason = explanation(error).split(f"/{_FOLDER}")[0].rstrip(" :")
        if NO_SPACE in explanation(error).lower():
            raise NoSpaceError(f"the Docker engine has no room left for the folders of the model: {NO_SPACE}") from None
        raise ContainerRefusedError(f"the Docker engine does not take the folders of the model: {reason}") from None
    return CopiedFolders(client=client, carrier=carrier.id, volumes=volumes)


def remove_copies(client: docker.DockerClient, *, name: str) -> None:
    """Remove what was made for the folders of container ``name``, which has to be gone itself."""
    for carrier in client.api.containers(all=True, filters={"label": f"{COPIES_LABEL}={name}"}):
        remove_container(client, carrier["Id"])
    remove_volumes(client, label=COPIES_LABEL, value=name)


def _mount(volume: str, *, target: str, read_only: bool = False) -> Mount:
    # What an image has at a place is not copied into the volume: as in a mounted folder, it is not seen.
    return Mount(target=target, source=volume, type="volume", read_only=read_only, no_copy=True)


def _until_halted(chunks: Iterator[bytes], is_halted: Callable[[], bool]) -> Iterator[bytes]:
    for chunk in chunks:
        if is_halted():
            raise RunHaltedError
        yield chunk


def _while_there_is_room(chunks: Iterator[bytes], disk: DiskReserve) -> Iterator[bytes]:
    for chunk in chunks:
        # Others write to this disk, too; and it may have no room for files while it has room for bytes.
        if shortage := disk.shortage():
            raise NoSpaceError(f"what it left on the Docker engine is not fetched, since {shortage}")
        yield chunk
