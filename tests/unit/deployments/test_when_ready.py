from __future__ import annotations

import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest

from deployments.when_ready import answers, main
from tests.services import ROOT, wait_until


@contextmanager
def http_server(port: int, *, status: int, authorization: str = "") -> Iterator[str]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            authorized = self.headers.get("Authorization", "") == authorization
            self.send_response(status if authorized else 401)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            """Say nothing."""

    server = HTTPServer(("127.0.0.1", port), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/api/health"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@pytest.mark.parametrize(("status", "ready"), [(200, True), (204, True), (401, False), (404, False), (503, False)])
def test_only_success_is_an_answer(status: int, ready: bool):
    with http_server(0, status=status) as address:
        assert answers(address, environ={}) is ready


def test_nobody_at_the_address_is_no_answer(free_port: int):
    assert not answers(f"http://127.0.0.1:{free_port}/api/health", environ={})


def test_to_ask_a_hundred_times_takes_next_to_nothing_from_what_is_waited_for(free_port: int):
    began = time.process_time()
    for _ in range(100):
        answers(f"http://127.0.0.1:{free_port}/api/health", environ={})
    assert time.process_time() - began < 1.5


def test_a_unix_socket_answers_while_somebody_listens():
    with tempfile.TemporaryDirectory() as folder:
        path = f"{folder}/s"
        assert not answers(f"unix:{path}", environ={})
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(path)
            listener.listen()
            assert answers(f"unix:{path}", environ={})
        assert not answers(f"unix:{path}", environ={})


def test_the_command_becomes_the_process_once_the_address_answers(free_port: int, tmp_path: Path):
    done = tmp_path / "done"
    code = f"import os, pathlib; pathlib.Path({str(done)!r}).write_text(str(os.getpid()))"
    command = [f"http://127.0.0.1:{free_port}/", "--", sys.executable, "-c", code]
    process = subprocess.Popen([sys.executable, "-m", "deployments.when_ready", *command], cwd=ROOT)
    try:
        with pytest.raises(subprocess.TimeoutExpired):
            process.wait(timeout=1)
        assert not done.exists()
        with http_server(free_port, status=200):
            wait_until(lambda: process.poll() is not None, seconds=20, what="the command runs")
    finally:
        process.kill()
        process.wait()
    assert process.returncode == 0
    assert done.read_text() == str(process.pid)


@pytest.mark.parametrize("arguments", [[], ["unix:/s"], ["unix:/s", "run"], ["unix:/s", "--"]])
def test_arguments_that_name_no_command_are_refused(arguments: list[str]):
    with pytest.raises(SystemExit, match="usage"):
        main(arguments)


@pytest.mark.parametrize(
    ("environ", "authorization"),
    [
        ({"PREFECT_API_AUTH_STRING": "admin:secret"}, "Basic YWRtaW46c2VjcmV0"),
        ({"PREFECT_API_KEY": "key"}, "Bearer key"),
    ],
)
def test_a_protected_server_answers_who_has_the_credentials(environ: dict[str, str], authorization: str):
    with http_server(0, status=200, authorization=authorization) as address:
        assert answers(address, environ=environ)
        assert not answers(address, environ={})
