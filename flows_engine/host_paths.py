"""Our path -> the engine's path, or an error; never a guess.

A bind mount is made by the engine, on its host and in its mount namespace. Where that is not ours, Docker would
silently mount another folder, or make an empty one. So a path is handed over only where it was proved to be the same
place.
"""

from __future__ import annotations

import socket
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from flows_engine.errors import EngineUnavailableError, HostPathError

_CREDENTIALS: Final = struct.Struct("3i")
_WAY_OUT: Final = (
    "run the worker on the engine's own host; or, in a container, with --pid=host and DATA_DIR and STATIC_DIR mounted"
    " at the same paths as on the host"
)


@dataclass(frozen=True, kw_only=True)
class HostPaths:
    """The folders of this process as the engine behind ``engine_url`` sees them."""

    engine_url: str
    proc: Path = Path("/proc")

    def of(self, path: Path) -> Path:
        """Return the engine's path of the existing ``path``.

        Raises ``HostPathError`` where it is not proved to be the same place, ``EngineUnavailableError`` where nothing
        listens.
        """
        resolved = path.resolve()
        pid = self._engine_pid(resolved)
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
        pid: int = _CREDENTIALS.unpack(credentials)[0]
        # 0: whoever listens lives outside our pid namespace, so this process is in a container and the engine is not.
        if pid == 0:
            raise HostPathError(f"{path} is a path of this container, and the Docker engine is outside it: {_WAY_OUT}")
        return pid

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
