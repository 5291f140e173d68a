"""A Docker engine that takes requests for NVIDIA GPUs, on a machine without any.

Docker gives GPUs to containers where it finds NVIDIA's hook as it starts. This engine, a second one beside that of the
machine, finds a hook of ours, which gives nothing; it fails as NVIDIA's does for a GPU that is not there, number 7.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from tests.local_engine import local_engine

_HOOK = """#!/bin/sh
bundle=$(sed 's/.*"bundle":"\\([^"]*\\)".*/\\1/')
if grep -q '"NVIDIA_VISIBLE_DEVICES=7"' "$bundle/config.json"; then
    echo 'nvidia-container-cli: device error: 7: unknown device' >&2
    exit 1
fi
"""


def missing_dockerd() -> str | None:
    """Return why no engine can be started here, None where one can."""
    if shutil.which("dockerd") is None:
        return "no dockerd is installed: run deployments/host/docker_engine.sh"
    if missing := [tool for tool in ("ip", "openssl") if shutil.which(tool) is None]:
        return f"{', '.join(missing)} cannot be found: install iproute2 and openssl"
    return "a Docker engine can be started by root only" if os.geteuid() != 0 else None


@contextlib.contextmanager
def gpu_engine(*images: str) -> Iterator[str]:
    """Run the engine, with ``images`` of the machine's own engine in it; give its address."""
    with tempfile.TemporaryDirectory(prefix="gpu-hook-") as name:
        hook = Path(name) / "nvidia-container-runtime-hook"
        hook.write_text(_HOOK)
        hook.chmod(0o755)
        environment = {**os.environ, "PATH": f"{name}:{os.environ['PATH']}"}
        with local_engine(*images, environment=environment) as engine:
            yield engine.url
