"""What every test may ask for: a free port, a real Prefect server, and the tools that the markers name."""

from __future__ import annotations

import functools
import os
import shutil
from collections.abc import Callable, Iterator

import docker
import docker.errors
import pytest
from hypothesis import settings

from tests import services
from tests.acceptance.browser import installed_browser
from tests.gpu_engine import missing_dockerd
from tests.shares import ByFile

# `HYPOTHESIS_EXAMPLES=100000 pytest --hypothesis-profile=long --timeout=0 TEST`, on a machine that is left alone.
settings.register_profile("long", max_examples=int(os.environ.get("HYPOTHESIS_EXAMPLES", "20000")), deadline=None)

_DCMTK_TOOLS = ("dcmdump", "dcmodify", "echoscu", "storescp", "storescu")


@functools.cache
def _missing_docker() -> str | None:
    try:
        engine = docker.from_env(timeout=10)
        engine.ping()
        engine.close()
    except docker.errors.DockerException as error:
        return f"no Docker engine answers ({type(error).__name__}): run deployments/host/docker_engine.sh"
    return None


@functools.cache
def _missing_dcmtk() -> str | None:
    missing = [tool for tool in _DCMTK_TOOLS if shutil.which(tool) is None]
    return f"DCMTK is not installed ({', '.join(missing)}): run deployments/host/dcmtk.sh" if missing else None


def _missing_loop() -> str | None:
    path = f"{os.environ.get('PATH', '')}:/usr/sbin"
    if any(shutil.which(f"mkfs.{kind}", path=path) is None for kind in ("ext2", "ext4", "xfs", "btrfs")):
        return "file systems cannot be made: run deployments/host/file_systems.sh"
    return "file systems can be mounted by root only" if os.geteuid() != 0 else None


def _missing_browser() -> str | None:
    return None if installed_browser() else "no Chromium is installed: run deployments/host/chromium.sh"


_REQUIREMENTS: dict[str, Callable[[], str | None]] = {
    "browser": _missing_browser,
    "docker": _missing_docker,
    "dockerd": missing_dockerd,
    "dcmtk": _missing_dcmtk,
    "loop": _missing_loop,
}


def pytest_xdist_make_scheduler(config: pytest.Config, log: object) -> ByFile:
    """Share a run among processes (``pytest -n``) by files."""
    return ByFile(config, log)


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skip a test whose tool is missing on a laptop; fail it in CI, where a skipped test would pass for a green one."""
    for marker, missing in _REQUIREMENTS.items():
        if item.get_closest_marker(marker) is None:
            continue
        reason = missing()
        if reason is None:
            continue
        if os.environ.get("CI"):
            pytest.fail(reason, pytrace=False)
        pytest.skip(reason)


@pytest.fixture(autouse=True, scope="session")
def _dcmtk_without_delay() -> None:
    # Without it every object waits 44 ms for Nagle's algorithm and the peer's delayed acknowledgement.
    os.environ["TCP_NODELAY"] = "1"


@pytest.fixture
def free_port() -> int:
    """A TCP port of the loopback interface that nobody listens on."""
    return services.unused_port()


@pytest.fixture(scope="session")
def prefect_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The API URL of a real, empty Prefect server on PostgreSQL, one for each process of a test run."""
    with services.prefect_server(tmp_path_factory.mktemp("prefect-server")) as url:
        yield url


@pytest.fixture
def empty_prefect(prefect_server: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The API URL of the Prefect server, emptied but for its work pools; this process uses it while the test runs."""
    from prefect.context import refresh_global_settings_context

    services.empty_prefect_server(prefect_server, pools=False)
    with monkeypatch.context() as environment:
        environment.setenv("PREFECT_API_URL", prefect_server)
        # Whoever has to wait for a server that is away does so by itself.
        environment.setenv("PREFECT_CLIENT_MAX_RETRIES", "0")
        for name, value in services.WITHOUT_AUTHORITIES.items():
            environment.setenv(name, value)
        refresh_global_settings_context()
        yield prefect_server
    refresh_global_settings_context()
