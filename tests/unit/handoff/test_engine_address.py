from __future__ import annotations

from pathlib import Path

import pytest

from flows_engine.handoff.engine_address import EngineAddress


@pytest.mark.parametrize(
    ("url", "is_remote"),
    [
        ("unix:///var/run/docker.sock", False),
        ("http+unix:///x.sock", False),
        ("tcp://gpu-host:2376", True),
        ("tcp://127.0.0.1:2375", True),
        ("tcp://localhost", True),
        ("http://gpu-host:1", True),
        ("https://gpu-host/engine", True),
    ],
)
def test_only_a_socket_is_of_this_host(url: str, is_remote: bool) -> None:
    assert EngineAddress(url=url).is_remote is is_remote


@pytest.mark.parametrize(
    ("url", "with_tls", "client_url"),
    [
        ("unix:///x.sock", True, "unix:///x.sock"),
        ("tcp://gpu-host:1", True, "tcp://gpu-host:1"),
        ("tcp://gpu-host", False, "tcp://gpu-host:2375"),
        ("tcp://gpu-host", True, "tcp://gpu-host:2376"),
        ("https://[::1]/engine", False, "https://[::1]:2376/engine"),
    ],
)
def test_the_port_is_dockers_own_where_none_is_said(url: str, with_tls: bool, client_url: str) -> None:
    assert EngineAddress(url=url, certificates=Path("/c") if with_tls else None).client_url == client_url


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("ssh://gpu-host", "forward a port"),
        ("npipe:////./pipe/docker_engine", "tcp://host:port"),
        ("fd://", "tcp://host:port"),
        ("gpu-host:2375", "tcp://host:port"),
        ("/var/run/docker.sock", "unix:///path/of/socket"),
        ("tcp:gpu-host", "tcp://host:port"),
        ("tcp://", "no host"),
        ("tcp://:2375", "no host"),
        ("tcp://gpu-host:0", "port"),
        ("tcp://gpu-host:70000", "port"),
        ("tcp://gpu-host:x", "port"),
        ("tcp://user:secret@gpu-host:1", "nothing else"),
        ("tcp://gpu-host:1?x=y", "nothing else"),
    ],
)
def test_what_is_no_engine_is_refused_with_a_way_out(url: str, said: str) -> None:
    with pytest.raises(ValueError, match=said) as refused:
        EngineAddress(url=url)
    assert "secret" not in str(refused.value)
