from __future__ import annotations

import configparser
import shlex

import pytest

from deployments.services import Service
from deployments.supervision import configuration


def parsed(*services: Service) -> configparser.RawConfigParser:
    # As supervisord reads it: what follows white space and # or ; is a comment.
    parser = configparser.RawConfigParser(inline_comment_prefixes=(";", "#"))
    parser.read_string(configuration(services))
    return parser


@pytest.mark.parametrize(
    "argument",
    [
        "100%",
        "%(here)s",
        "with space",
        "ward #1",
        "a ;b",
        "#1",
        ";",
        "it's #1",
        'say "x" # y',
        "Größe 🩻",
        "a  #  #b",
        "",
    ],
)
def test_an_argument_reaches_the_service_as_it_was_written(argument: str):
    command = parsed(Service(name="one", command=("run", argument), rank=1))["program:one"]["command"]

    # supervisord interpolates, then splits.
    assert shlex.split(command % {"here": "/elsewhere"})[-2:] == ["run", argument]


def test_a_service_starts_by_rank_and_is_stopped_as_it_says():
    section = parsed(Service(name="db", command=("db",), rank=10, stop_signal="INT", stop_seconds=7))["program:db"]

    assert (section["priority"], section["stopsignal"], section["stopwaitsecs"]) == ("10", "INT", "7")
    assert section["command"] == "setpriv --pdeathsig INT -- db"


def test_a_service_is_restarted_however_often_it_dies():
    section = parsed(Service(name="one", command=("run",), rank=1))["program:one"]

    assert section["autorestart"] == "true"
    assert int(section["startretries"]) >= 1_000_000


def test_every_service_has_a_log_that_cannot_fill_the_disk():
    section = parsed(Service(name="one", command=("run",), rank=1))["program:one"]

    assert section["stdout_logfile"].endswith("/one.log")
    assert section["redirect_stderr"] == "true"
    assert int(section["stdout_logfile_backups"]) > 0
    assert section["stdout_logfile_maxbytes"] == "20MB"


def test_each_service_has_a_section_of_its_own():
    parser = parsed(*(Service(name=name, command=(name,), rank=1) for name in ("a", "b")))

    assert parser.sections() == ["supervisord", "program:a", "program:b"]
