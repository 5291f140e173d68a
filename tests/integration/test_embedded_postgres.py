"""A real PostgreSQL from the wheel: wherever its folder lies, and whenever it was killed."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import asyncpg
import pytest

from deployments.embedded_postgres import socket_path
from tests.services import ROOT, running, wait_until


@contextmanager
def postgres(data: Path) -> Iterator[subprocess.Popen[bytes]]:
    """Run the cluster in ``data``; its log lies beside it."""
    command = [sys.executable, "-m", "deployments.embedded_postgres", str(data)]
    log = data.with_name("log")
    with running(command, log=log, environment=os.environ, stop_signal=signal.SIGINT) as process:
        wait_until(lambda: process.poll() is not None or listens(data), seconds=60, what="PostgreSQL starts")
        assert process.poll() is None, log.read_text()
        yield process


def listens(data: Path) -> bool:
    with socket.socket(socket.AF_UNIX) as probe:
        return probe.connect_ex(str(socket_path(data))) == 0


def ask(data: Path, *statements: str) -> object:
    """Execute statements, and return the first value that the last one gives."""

    async def talk() -> object:
        deadline = asyncio.get_running_loop().time() + 30
        while True:
            try:
                connection = await asyncpg.connect(
                    user="postgres", database="postgres", host=str(socket_path(data).parent)
                )
                break
            except asyncpg.CannotConnectNowError:  # it listens, and is not up yet
                assert asyncio.get_running_loop().time() < deadline
                await asyncio.sleep(0.05)
        try:
            for statement in statements[:-1]:
                await connection.execute(statement)
            return await connection.fetchval(statements[-1])
        finally:
            await connection.close()

    return asyncio.run(talk())


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cluster with a note in it, made in a folder that only its owner may enter, with a path that is too long for a
    socket and holds whatever a path may hold. It is stopped."""
    folder = tmp_path_factory.mktemp("closed") / "ward 3 100% #1 ;Größe" / ("d" * 100)
    folder.mkdir(parents=True)
    folder.chmod(0o700)
    data = folder / "postgres"
    with postgres(data):
        ask(data, "CREATE TABLE note (text text)", "INSERT INTO note VALUES ('kept') RETURNING text")
    assert not listens(data)
    return data


def test_the_data_is_kept_over_a_restart(cluster: Path):
    with postgres(cluster):
        assert ask(cluster, "SELECT text FROM note") == "kept"


def test_the_data_is_kept_over_a_kill(cluster: Path):
    with postgres(cluster) as process:
        ask(cluster, "INSERT INTO note VALUES ('acknowledged') RETURNING text")
        os.kill(process.pid, signal.SIGKILL)
        process.wait()

    with postgres(cluster):
        assert ask(cluster, "SELECT count(*) FROM note WHERE text = 'acknowledged'") == 1
        ask(cluster, "DELETE FROM note WHERE text = 'acknowledged' RETURNING text")


def test_nobody_else_can_reach_it_and_it_has_what_prefects_schema_needs(cluster: Path):
    with postgres(cluster):
        assert ask(cluster, "SHOW listen_addresses") == ""
        assert socket_path(cluster).parent != cluster
        for folder in (cluster, socket_path(cluster).parent):
            status = folder.stat()
            assert (status.st_mode & 0o777, status.st_uid) == (0o700, os.geteuid())
        assert ask(cluster, "CREATE EXTENSION IF NOT EXISTS pg_trgm", "SELECT similarity('abc', 'abc')") == 1


def test_it_ends_with_whoever_started_it(cluster: Path):
    code = """
import subprocess, sys
server = [sys.executable, "-m", "deployments.embedded_postgres", sys.argv[1]]
subprocess.run(["setpriv", "--pdeathsig", "INT", "--", *server])
"""
    with subprocess.Popen([sys.executable, "-c", code, str(cluster)], cwd=ROOT) as parent:
        try:
            wait_until(lambda: listens(cluster), seconds=60, what="PostgreSQL starts")
            server = int((cluster / "postmaster.pid").read_text().splitlines()[0])
        finally:
            parent.kill()
    try:
        wait_until(lambda: not (cluster / "postmaster.pid").exists(), seconds=20, what="PostgreSQL ends by itself")
    except TimeoutError:
        os.kill(server, signal.SIGINT)
        raise


def test_a_cluster_that_was_cut_off_while_it_was_made_is_made_anew(tmp_path: Path):
    data = tmp_path / "postgres"
    unfinished = tmp_path / "postgres.unfinished"
    command = [sys.executable, "-m", "deployments.embedded_postgres", str(data)]
    with running(command, log=tmp_path / "log", environment=os.environ) as process:
        wait_until((unfinished / "base").exists, seconds=30, what="the making of a cluster")
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    assert not data.exists()
    assert unfinished.exists()

    with postgres(data):
        assert ask(data, "SELECT 1") == 1
    assert not unfinished.exists()
