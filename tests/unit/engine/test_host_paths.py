from __future__ import annotations

import os
import socket
import struct
from collections.abc import Iterator
from pathlib import Path

import pytest

from flows_engine.errors import EngineUnavailableError, HostPathError
from flows_engine.host_paths import HostPaths


@pytest.fixture
def engine(tmp_path: Path) -> Iterator[str]:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "engine.sock"))
        listener.listen()
        yield f"unix://{tmp_path}/engine.sock"


@pytest.fixture
def proc(tmp_path: Path) -> Path:
    """A process table in which the engine has this process's id."""
    proc = tmp_path / "proc"
    for name, namespace in (("self", "mnt:[1]"), (str(os.getpid()), "mnt:[2]")):
        (proc / name / "ns").mkdir(parents=True)
        (proc / name / "ns" / "mnt").symlink_to(namespace)
        (proc / name / "mountinfo").write_text("11 1 8:1 / / rw - ext4 /dev/sda rw\n")
    return proc


def test_an_engine_in_our_mount_namespace_has_our_paths(engine: str, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(tmp_path)
    assert HostPaths(engine_url=engine).of(tmp_path / "link") == tmp_path.resolve()


def test_an_engine_elsewhere_that_sees_the_same_folder_is_trusted(engine: str, proc: Path, tmp_path: Path) -> None:
    (proc / str(os.getpid()) / "root").symlink_to("/")
    (proc / "self" / "root").symlink_to("/")
    assert HostPaths(engine_url=engine, proc=proc).of(tmp_path) == tmp_path.resolve()


def test_an_engine_elsewhere_that_sees_another_folder_is_refused(engine: str, proc: Path, tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.joinpath(*tmp_path.resolve().parts[1:]).mkdir(parents=True)
    (proc / str(os.getpid()) / "root").symlink_to(elsewhere)
    (proc / "self" / "root").symlink_to("/")
    with pytest.raises(HostPathError, match="another place"):
        HostPaths(engine_url=engine, proc=proc).of(tmp_path)


@pytest.mark.parametrize(("mount_id", "is_same"), [(11, True), (12, False)])
def test_where_namespaces_are_secret_the_mount_table_tells(
    engine: str, proc: Path, tmp_path: Path, mount_id: int, is_same: bool
) -> None:
    theirs = proc / str(os.getpid())
    (theirs / "ns" / "mnt").unlink()
    (theirs / "mountinfo").write_text(f"{mount_id} 1 8:1 / / rw - ext4 /dev/sda rw\n")
    paths = HostPaths(engine_url=engine, proc=proc)
    if is_same:
        assert paths.of(tmp_path) == tmp_path.resolve()
    else:
        with pytest.raises(HostPathError):
            paths.of(tmp_path)


def test_an_engine_outside_our_process_namespace_is_refused(
    engine: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Foreign(socket.socket):
        def getsockopt(self, *_: object) -> bytes:  # type: ignore[override]
            return struct.pack("3i", 0, 0, 0)

    monkeypatch.setattr("flows_engine.host_paths.socket.socket", Foreign)
    with pytest.raises(HostPathError, match=r"outside it.*--pid=host"):
        HostPaths(engine_url=engine).of(tmp_path)


@pytest.mark.parametrize("url", ["tcp://10.0.0.1:2376", "ssh://gpu-host", "npipe:////./pipe/docker_engine"])
def test_an_engine_on_a_network_is_refused(url: str, tmp_path: Path) -> None:
    with pytest.raises(HostPathError, match="own host"):
        HostPaths(engine_url=url).of(tmp_path)


def test_nobody_listening_is_another_matter(tmp_path: Path) -> None:
    with pytest.raises(EngineUnavailableError):
        HostPaths(engine_url=f"unix://{tmp_path}/nothing.sock").of(tmp_path)
