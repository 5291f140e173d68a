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

import docker

from tests.services import running, wait_until

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
    # A socket's path has 107 bytes at most.
    with tempfile.TemporaryDirectory(prefix="gpu-engine-", ignore_cleanup_errors=True) as name:
        folder = Path(name)
        hook = folder / "bin" / "nvidia-container-runtime-hook"
        hook.parent.mkdir()
        hook.write_text(_HOOK)
        hook.chmod(0o755)
        url = f"unix://{folder}/docker.sock"
        (folder / "daemon.json").write_text("{}")
        # An engine without a bridge removes docker0, so it needs a network namespace of its own: the machine's engine
        # uses that one.
        command = ["unshare", "--net", "dockerd", "--host", url, f"--config-file={folder}/daemon.json"]
        command += ["--bridge=none", "--iptables=false", "--ip6tables=false"]
        command += [f"--data-root={folder}/data", f"--exec-root={folder}/exec", f"--pidfile={folder}/pid"]
        environment = {**os.environ, "PATH": f"{hook.parent}:{os.environ['PATH']}"}
        with running(command, log=folder / "log", environment=environment):
            wait_until(lambda: _answers(url), seconds=60, what="a second Docker engine starts")
            _copy_images(images, url)
            yield url


def _answers(url: str) -> bool:
    try:
        engine = docker.DockerClient(base_url=url, timeout=5)
    except docker.errors.DockerException:
        return False
    engine.close()
    return True


def _copy_images(images: tuple[str, ...], url: str) -> None:
    own, other = docker.from_env(), docker.DockerClient(base_url=url)
    for image in images:
        other.images.load(b"".join(own.images.get(image).save(named=True)))
    own.close()
    other.close()
