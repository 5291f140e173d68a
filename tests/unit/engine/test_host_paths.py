from __future__ import annotations

import os
import socket
import struct
from collections.abc import Iterator
from pathlib import Path

import pytest

from flows_engine.errors import EngineUnavailableError, HostPathError
from flows_engine.host_paths import EngineMount, HostPaths


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


@pytest.fixture
def engine_outside(engine: str, monkeypatch: pytest.MonkeyPatch) -> str:
    """An engine outside our process namespace."""

    class Foreign(socket.socket):
        def getsockopt(self, *_: object) -> bytes:  # type: ignore[override]
            return struct.pack("3i", 0, 0, 0)

    monkeypatch.setattr("flows_engine.host_paths.socket.socket", Foreign)
    return engine


CONTAINER = "0123456789abcdef" * 4


def in_a_container(proc: Path, root: str) -> None:
    line = f"12 11 8:1 {root} /etc/hostname rw - ext4 /dev/sda rw\n"
    (proc / "self" / "mountinfo").write_text("11 1 0:1 / / rw - overlay overlay rw\n" + line)


@pytest.mark.parametrize(
    "root",
    [
        f"/var/lib/docker/containers/{CONTAINER}/hostname",
        f"/srv/storage/overlay-containers/{CONTAINER}/userdata/hostname",
    ],
)
def test_in_a_container_the_engine_says_what_it_has_mounted_there(
    engine_outside: str, proc: Path, tmp_path: Path, root: str
) -> None:
    in_a_container(proc, root)
    mounts = {
        CONTAINER: [
            EngineMount(source=Path("/srv/dicom"), destination=tmp_path),
            EngineMount(source=Path("/fast/runs"), destination=tmp_path / "runs"),
        ]
    }
    paths = HostPaths(engine_url=engine_outside, proc=proc, mounts_of=lambda number: mounts[number])
    assert paths.of(tmp_path / "studies" / "1") == Path("/srv/dicom/studies/1")
    assert paths.of(tmp_path / "runs" / "1") == Path("/fast/runs/1")
    assert paths.of(tmp_path / "runs-of-others") == Path("/srv/dicom/runs-of-others")
    with pytest.raises(HostPathError, match="in none of its mounts"):
        paths.of(tmp_path.parent / "elsewhere")


def test_an_engine_that_does_not_know_our_container_is_refused(engine_outside: str, proc: Path, tmp_path: Path) -> None:
    in_a_container(proc, f"/var/lib/docker/containers/{CONTAINER}/hostname")
    with pytest.raises(HostPathError, match="knows nothing"):
        HostPaths(engine_url=engine_outside, proc=proc).of(tmp_path)


def test_an_engine_outside_our_process_namespace_is_refused(engine_outside: str, proc: Path, tmp_path: Path) -> None:
    paths = HostPaths(
        engine_url=engine_outside, proc=proc, mounts_of=lambda _: [EngineMount(source=tmp_path, destination=tmp_path)]
    )
    with pytest.raises(HostPathError, match="knows nothing"):
        paths.of(tmp_path)


@pytest.mark.parametrize("url", ["tcp://10.0.0.1:2376", "ssh://gpu-host", "npipe:////./pipe/docker_engine"])
def test_an_engine_on_a_network_is_refused(url: str, tmp_path: Path) -> None:
    with pytest.raises(HostPathError, match="own host"):
        HostPaths(engine_url=url).of(tmp_path)


def test_nobody_listening_is_another_matter(tmp_path: Path) -> None:
    with pytest.raises(EngineUnavailableError):
        HostPaths(engine_url=f"unix://{tmp_path}/nothing.sock").of(tmp_path)
