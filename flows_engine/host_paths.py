"""Our path -> the engine's path, or an error; never a guess.

A bind mount is made by the engine, on its host and in its mount namespace. Where that is not ours, Docker would
silently mount another folder, or make an empty one. So a path is handed over only where it was proved to be the same
place; or, in a container of that very engine, where the engine says which place of its host it has mounted there.
"""

from __future__ import annotations

import re
import socket
import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from flows_engine.errors import EngineUnavailableError, HostPathError

_CREDENTIALS: Final = struct.Struct("3i")
_WAY_OUT: Final = (
    "run the worker on the engine's own host, or in a container of that engine with DATA_DIR and STATIC_DIR mounted"
    " from the host"
)
# Engines mount these files into each container, from a folder that has its id for a name.
_ID_IN_A_MOUNT: Final = re.compile(r"/([0-9a-f]{64})/(?:userdata/)?(?:hostname|hosts|resolv\.conf)\Z")


@dataclass(frozen=True, kw_only=True)
class EngineMount:
    """A place of the engine's host that it has mounted into a container."""

    source: Path
    destination: Path


def _of_no_container(_: str) -> Sequence[EngineMount]:
    return ()


@dataclass(frozen=True, kw_only=True)
class HostPaths:
    """The folders of this process as the engine behind ``engine_url`` sees them."""

    engine_url: str
    mounts_of: Callable[[str], Sequence[EngineMount]] = _of_no_container
    """Asks the engine for the mounts of one of its containers, by its id; none where it has no such container."""
    proc: Path = Path("/proc")

    def of(self, path: Path) -> Path:
        """Return the engine's path of the existing ``path``.

        Raises ``HostPathError`` where it is not proved to be the same place, ``EngineUnavailableError`` where nothing
        listens.
        """
        resolved = path.resolve()
        pid = self._engine_pid(resolved)
        if pid == 0:
            return self._from_a_container(resolved)
        if self._same_mounts(pid) or self._same_place(pid, resolved):
            return resolved
        raise HostPathError(f"{resolved} is another place for the Docker engine (process {pid}): {_WAY_OUT}")

    def _engine_pid(self, path: Path) -> int:
        scheme, _, place = self.engine_url.partition("://")
        if scheme not in ("unix", "http+unix"):
            raise HostPathError(f"{path} is not known to a Docker engine that is reached by {scheme}: {_WAY_OUT}")
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
            try:
                connection.connect("/" + place.lstrip("/"))
            except OSError as error:
                raise EngineUnavailableError(
                    f"no Docker engine answers at {self.engine_url}: {error.strerror}"
                ) from error
            credentials = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
        # 0: whoever listens lives outside our pid namespace, so this process is in a container and the engine is not.
        pid: int = _CREDENTIALS.unpack(credentials)[0]
        return pid

    def _from_a_container(self, path: Path) -> Path:
        """Return the place on the engine's host that is mounted at ``path``, as the engine says."""
        mounts = [mount for number in self._own_ids() for mount in self.mounts_of(number)]
        if not mounts:
            raise HostPathError(
                f"{path} is a path of this container, of which the Docker engine outside it knows nothing: {_WAY_OUT}"
            )
        # A mount below another one hides what that has there.
        around = [mount for mount in mounts if path.is_relative_to(mount.destination)]
        if not around:
            raise HostPathError(f"{path} is a path of this container and in none of its mounts: {_WAY_OUT}")
        nearest = max(around, key=lambda mount: len(mount.destination.parts))
        return nearest.source / path.relative_to(nearest.destination)

    def _own_ids(self) -> list[str]:
        """Return the id of the container that this process is in, if it is in one."""
        try:
            lines = (self.proc / "self" / "mountinfo").read_text().splitlines()
        except OSError:
            return []
        # proc(5): mount id, parent id, major:minor, root, mount point, …
        found = (_ID_IN_A_MOUNT.search(line.split()[3]) for line in lines)
        return list(dict.fromkeys(match.group(1) for match in found if match))

    def _same_mounts(self, pid: int) -> bool:
        """Whether the engine lives in our mount namespace. A mount id is unique on a host."""
        if _root(self.proc / str(pid)) not in (None, _root(self.proc / "self")):
            return False
        try:
            return (self.proc / str(pid) / "ns/mnt").readlink() == (self.proc / "self/ns/mnt").readlink()
        except OSError:
            # The namespace of another user's process cannot be read, its mount table can.
            ours = _root_mount(self.proc / "self")
            return ours is not None and _root_mount(self.proc / str(pid)) == ours

    def _same_place(self, pid: int, path: Path) -> bool:
        try:
            theirs = (self.proc / str(pid) / "root" / path.relative_to("/")).stat()
        except OSError:
            return False
        ours = path.stat()
        return (theirs.st_dev, theirs.st_ino) == (ours.st_dev, ours.st_ino)


def _root(process: Path) -> Path | None:
    try:
        return (process / "root").readlink()
    except OSError:
        return None


def _root_mount(process: Path) -> str | None:
    try:
        lines = (process / "mountinfo").read_text().splitlines()
    except OSError:
        return None
    # proc(5): mount id, parent id, major:minor, root, mount point, …
    ids = [fields[0] for fields in map(str.split, lines) if fields[4] == "/"]
    return ids[-1] if ids else None
