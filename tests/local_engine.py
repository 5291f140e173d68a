"""A Docker engine of this host beside that of the machine: one that may be stopped and killed."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import docker

from tests.services import running, wait_until

# It takes a second or two; after a kill on a busy machine, with containers that still run, many more.
_START_SECONDS = 120


@dataclass(kw_only=True)
class LocalEngine:
    """The engine: where it listens, and how it is started. Its files are in ``folder``."""

    folder: Path
    environment: Mapping[str, str]
    listening: socket.socket | None = None
    """The socket that it is given, as systemd gives Debian's: who connects while it is away waits until it is back."""
    _running: contextlib.ExitStack = field(default_factory=contextlib.ExitStack)
    _process: subprocess.Popen[bytes] | None = None
    _is_killed: bool = False

    @property
    def url(self) -> str:
        return f"unix://{self.folder}/docker.sock"

    def start(self) -> None:
        """Start it, with all that it kept."""
        (self.folder / "daemon.json").write_text("{}")
        # An engine without a bridge removes docker0, so it needs a network namespace of its own: the machine's engine
        # uses that one.
        command = ["unshare", "--net", "dockerd", f"--config-file={self.folder}/daemon.json"]
        command += ["--host", self.url if self.listening is None else "fd://"]
        command += ["--bridge=none", "--iptables=false", "--ip6tables=false"]
        command += [
            f"--data-root={self.folder}/data",
            f"--exec-root={self.folder}/exec",
            f"--pidfile={self.folder}/pid",
        ]
        pass_fds: tuple[int, ...] = ()
        if self.listening is not None:
            # The protocol of systemd: descriptor 3, for the process of this number.
            pass_fds = (self.listening.fileno(),)
            script = f'exec 3<&{self.listening.fileno()}; LISTEN_PID=$$ LISTEN_FDS=1 exec "$@"'
            command = ["bash", "-c", script, "dockerd", *command]
        log = self.folder / "log"
        started = running(command, log=log, environment=self.environment, pass_fds=pass_fds)
        self._process, self._is_killed = self._running.enter_context(started), False
        try:
            wait_until(self._answers, seconds=_START_SECONDS, what="a second Docker engine starts")
        except TimeoutError as error:
            said = (self.folder / "log").read_text(errors="replace")[-4000:]
            raise RuntimeError(f"{error}; its log ends with\n{said}") from error

    def stop(self) -> None:
        """End it, as a host does that shuts down: what it runs is asked to end, and killed."""
        self._running.close()

    def kill(self) -> None:
        """End it as a crash does. What it runs goes on, until it is started again."""
        assert self._process is not None
        self._process.send_signal(signal.SIGKILL)
        self._process.wait()
        self._is_killed = True
        self.stop()
        # Its containerd dies with it. Where nobody buries that, as in a container without an init, its number would
        # pass for that of a living one.
        (self.folder / "exec" / "containerd" / "containerd.pid").unlink(missing_ok=True)

    def end(self) -> None:
        """End it for good: what it runs ends, too, and what it has mounted is gone."""
        if self._is_killed:
            self.start()
        self.stop()
        # A crash leaves them, and the folder cannot be removed then.
        mounted = [line.split()[1] for line in Path("/proc/self/mounts").read_text().splitlines()]
        for place in reversed([place for place in mounted if Path(place).is_relative_to(self.folder)]):
            subprocess.run(["umount", "--lazy", place], check=False, capture_output=True)

    @contextlib.contextmanager
    def client(self) -> Iterator[docker.DockerClient]:
        """Give a client of it."""
        client = docker.DockerClient(base_url=self.url, timeout=20)
        yield client
        client.close()

    def _answers(self) -> bool:
        try:
            with self.client() as client:
                client.ping()
        except docker.errors.DockerException:
            return False
        return True


@contextlib.contextmanager
def local_engine(
    *images: str, environment: Mapping[str, str] = os.environ, is_socket_held: bool = False
) -> Iterator[LocalEngine]:
    """Run the engine, with ``images`` of the machine's own engine in it.

    With ``is_socket_held`` its socket is there while it is not, as on hosts with systemd.
    """
    # A socket's path has 107 bytes at most.
    with tempfile.TemporaryDirectory(prefix="local-engine-", ignore_cleanup_errors=True) as name:
        engine = LocalEngine(folder=Path(name), environment=environment)
        if is_socket_held:
            engine.listening = socket.socket(socket.AF_UNIX)
            engine.listening.bind(f"{name}/docker.sock")
            engine.listening.listen(128)
        try:
            engine.start()
            own = docker.from_env()
            with engine.client() as other:
                for image in images:
                    other.images.load(b"".join(own.images.get(image).save(named=True)))
            own.close()
            yield engine
        finally:
            engine.end()
            if engine.listening is not None:
                engine.listening.close()
