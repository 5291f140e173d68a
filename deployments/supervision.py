"""Keeping services running, with supervisord: what to write into its configuration, and how to start and stop it."""

from __future__ import annotations

import configparser
import io
import os
import re
import shlex
import signal
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

from deployments.services import HostPlan, Service

_LOG_BYTES = "20MB"
_LOG_BACKUPS = "5"
# A parent that is killed outright cannot stop its children: the kernel tells them.
_DIES_WITH_PARENT = ("setpriv", "--pdeathsig")
# Paths are handed over beside the configuration: in it, ` #` and ` ;` would begin a comment.
_LOG_FOLDER_NAME = "DICOMFLOW_LOG_FOLDER"
_LOG_FOLDER = f"%(ENV_{_LOG_FOLDER_NAME})s"


def configuration(services: Iterable[Service]) -> str:
    """Return a configuration for supervisord, whose folder is for its own files, too. Pure.

    Logs go to the folder that supervisord finds in its environment as ``DICOMFLOW_LOG_FOLDER``.
    """
    # Interpolation is supervisord's business: a percent sign in a path is doubled for it, not for us.
    parser = configparser.RawConfigParser()
    parser["supervisord"] = {
        "nodaemon": "true",
        "silent": "true",
        "pidfile": "%(here)s/supervisord.pid",
        "logfile": f"{_LOG_FOLDER}/supervisord.log",
        "logfile_maxbytes": _LOG_BYTES,
        "childlogdir": _LOG_FOLDER,
    }
    if os.geteuid() == 0:
        parser["supervisord"]["user"] = "root"  # said on purpose, or supervisord warns
    for service in services:
        command = (*_DIES_WITH_PARENT, service.stop_signal, "--", *service.command)
        parser[f"program:{service.name}"] = {
            "command": _command_line(command),
            "priority": str(service.rank),
            "autorestart": "true",
            "startretries": "1000000",
            "stopsignal": service.stop_signal,
            "stopwaitsecs": str(service.stop_seconds),
            "killasgroup": "true",
            # supervisord interpolates this one twice: a percent sign in the path must come in by the second time.
            "stdout_logfile": f"%{_LOG_FOLDER}/{service.name}.log",
            "stdout_logfile_maxbytes": _LOG_BYTES,
            "stdout_logfile_backups": _LOG_BACKUPS,
            "redirect_stderr": "true",
        }
    text = io.StringIO()
    parser.write(text)
    return text.getvalue()


def _command_line(command: Iterable[str]) -> str:
    quoted = shlex.join(command).replace("%", "%%")
    # What would begin a comment always stands between single quotes: they are closed and opened again before it.
    return re.sub(r"(?<=\s)(?=[#;])", "''", quoted)


class Supervisor:
    """supervisord, running the services of one host."""

    def __init__(self, plan: HostPlan, *, run_folder: Path, log_folder: Path) -> None:
        self._plan = plan
        self._run_folder = run_folder
        self.log_folder = log_folder
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start all services. They come up by themselves, in their own time."""
        for folder in (self._run_folder, self.log_folder):
            folder.mkdir(parents=True, exist_ok=True)
        path = self._run_folder / "supervisord.conf"
        path.write_text(configuration(self._plan.services))
        command = [*_DIES_WITH_PARENT, "TERM", "--", sys.executable, "-m", "supervisor.supervisord", "-c", str(path)]
        self._process = subprocess.Popen(  # noqa: S603
            command,
            env={**self._plan.environment, _LOG_FOLDER_NAME: str(self.log_folder)},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            start_new_session=True,  # Ctrl-C in the terminal reaches us alone: the order of stopping is ours
        )

    @property
    def running(self) -> bool:
        """Whether supervisord itself is alive."""
        return self._process is not None and self._process.poll() is None

    def wait(self) -> int:
        """Wait until supervisord ends, and return its exit status."""
        return self._process.wait() if self._process is not None else 0

    def stop(self) -> None:
        """Stop all services, last started first, and wait until they are gone. May be called twice."""
        if self._process is None:
            return
        if self.running:
            self._process.send_signal(signal.SIGTERM)
        self._process.wait()
