"""DCMTK's command-line tools, as the independent sender and receiver of the demonstration."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from deployments.errors import CommandError

_START_SECONDS = 10.0


class ToolMissingError(CommandError):
    """A tool of DCMTK is not installed."""


class ToolFailedError(CommandError):
    """A tool of DCMTK did not do what it was started for."""


def tool(name: str) -> str:
    """Return the path of DCMTK's ``name``. Raises ``ToolMissingError``."""
    # pynetdicom installs programs of the same names beside our interpreter; they would come first.
    own = Path(sys.executable).parent
    folders = [folder for folder in os.environ.get("PATH", "").split(os.pathsep) if Path(folder) != own]
    found = shutil.which(name, path=os.pathsep.join(folders))
    if found is None:
        raise ToolMissingError(f"DCMTK's {name} is not installed; on Debian or Ubuntu: apt-get install dcmtk")
    return found


def environment() -> dict[str, str]:
    """Return the environment for DCMTK: without this, each object waits 44 ms for Nagle and the delayed ACK."""
    return {**os.environ, "TCP_NODELAY": "1"}


def store(files: Sequence[Path], *, port: int, called_ae_title: str) -> None:
    """Send ``files`` in one association. Raises ``ToolFailedError`` with DCMTK's words if not all were acknowledged."""
    command = [
        tool("storescu"),
        "--required",
        "--propose-rle",
        "--aetitle",
        "DEMO",
        "--call",
        called_ae_title,
        "127.0.0.1",
        str(port),
        *map(str, files),
    ]
    sent = subprocess.run(command, env=environment(), capture_output=True, text=True, check=False)  # noqa: S603
    if sent.returncode != 0:
        raise ToolFailedError(f"storescu ended with status {sent.returncode}: {sent.stderr.strip()}")


@contextmanager
def receiver(folder: Path, *, port: int, ae_title: str) -> Iterator[None]:
    """Run a ``storescp`` that accepts every transfer syntax and writes what it receives, bit for bit, to ``folder``."""
    command = [tool("storescp"), "--fork", "--accept-all", "+B", "--aetitle", ae_title, "-od", str(folder), str(port)]
    process = subprocess.Popen(  # noqa: S603
        command, env=environment(), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        deadline = time.monotonic() + _START_SECONDS
        while not listens(port):
            if process.poll() is not None or time.monotonic() > deadline:
                raise ToolFailedError(f"storescp does not listen on port {port}")
            time.sleep(0.05)
        yield
    finally:
        process.terminate()
        process.wait()


def listens(port: int) -> bool:
    """Tell whether something accepts connections on ``port`` of this host."""
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0
