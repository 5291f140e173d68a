"""A Docker engine on another host, as far as can be told from here, on this very machine.

It is a second one, in namespaces of its own: its network is one end of a cable of which we hold the other, and it
sees an empty folder where our temporary files are. What is asked of it as a bind mount is another folder there.
"""

from __future__ import annotations

import contextlib
import ipaddress
import json
import os
import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import docker

from flows_engine.handoff.engine_address import EngineAddress
from flows_engine.handoff.site_settings import load_site_settings
from tests.claims import claim
from tests.services import running, wait_until

# The engine's own files: a folder that its empty temporary folder does not hide.
_PLACE = "/var/tmp"
# Of a block for documentation (RFC 5737), which no host of a site has; a machine for tests may have another of them.
_NETWORKS = list(ipaddress.ip_network("198.51.100.0/24").subnets(new_prefix=30))


@dataclass(kw_only=True)
class RemoteEngine:
    """The engine: where it listens for us, how it is started, and where its files are."""

    address: EngineAddress
    command: list[str]
    folder: Path
    _running: contextlib.ExitStack = field(default_factory=contextlib.ExitStack)
    _process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start it, as it was when it was stopped."""
        started = running(self.command, log=self.folder / "log", environment=os.environ)
        self._process = self._running.enter_context(started)
        wait_until(self._answers, seconds=60, what="a remote Docker engine starts")

    def stop(self) -> None:
        """End it, and with it all that runs there."""
        self._running.close()

    def send_signal(self, number: int) -> None:
        """Send a signal to the engine itself; it executes nothing of what runs there."""
        assert self._process is not None
        self._process.send_signal(number)

    @contextlib.contextmanager
    def client(self) -> Iterator[docker.DockerClient]:
        """Give a client that sees what is there, past the network."""
        client = docker.DockerClient(base_url=f"unix://{self.folder}/docker.sock")
        yield client
        client.close()

    def left(self) -> tuple[int, int]:
        """Return how many containers and volumes it has."""
        with self.client() as client:
            # Not by inspecting each: a container that is copied to does not answer.
            return len(client.api.containers(all=True)), len(client.api.volumes()["Volumes"] or ())

    def _answers(self) -> bool:
        try:
            with self.client() as client:
                client.ping()
        except docker.errors.DockerException:
            return False
        return True


def own_engine() -> EngineAddress:
    """Return the engine that whoever runs the tests uses."""
    return load_site_settings(os.environ).settings.engine_address


def make_certificates(folder: Path, *, address: str) -> Path:
    """Make an authority, and by it what an engine at ``address`` and its clients need; return the clients' folder."""
    client = folder / "client"
    client.mkdir(parents=True)

    def openssl(*arguments: str | Path) -> None:
        subprocess.run(["openssl", *map(str, arguments)], cwd=folder, check=True, capture_output=True)

    new = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes")
    openssl("req", "-x509", *new, "-days", "2", "-subj", "/CN=authority", "-keyout", "ca-key.pem", "-out", "ca.pem")
    for name, usage, more in (
        ("server", "serverAuth", f"subjectAltName=IP:{address}\n"),
        ("client", "clientAuth", ""),
    ):
        (folder / f"{name}.ext").write_text(f"extendedKeyUsage={usage}\n{more}")
        openssl("req", *new, "-subj", f"/CN={name}", "-keyout", f"{name}-key.pem", "-out", f"{name}.csr")
        signed = ("-CA", "ca.pem", "-CAkey", "ca-key.pem", "-CAcreateserial", "-days", "2", "-extfile", f"{name}.ext")
        openssl("x509", "-req", "-in", f"{name}.csr", *signed, "-out", f"{name}-cert.pem")
    (client / "ca.pem").write_bytes((folder / "ca.pem").read_bytes())
    (client / "cert.pem").write_bytes((folder / "client-cert.pem").read_bytes())
    (client / "key.pem").write_bytes((folder / "client-key.pem").read_bytes())
    return client


@contextlib.contextmanager
def remote_engine(*images: str, with_tls: bool = False, data_size: str | None = None) -> Iterator[RemoteEngine]:
    """Run the engine, with ``images`` of the machine's own engine in it.

    ``data_size`` is the room it has for all that it keeps, like ``64m``; without it, as much as this machine.
    """
    with (
        tempfile.TemporaryDirectory(prefix="remote-engine-", dir=_PLACE, ignore_cleanup_errors=True) as name,
        _namespaces(Path(name), data_size) as (holder, address),
    ):
        folder = Path(name)
        (folder / "daemon.json").write_text("{}")
        # To an engine without TLS that does not say so, Docker gives 15 seconds to think again.
        port, tls = 2375, ["--tls=false"]
        certificates = None
        if with_tls:
            port, certificates = 2376, make_certificates(folder / "tls", address=address)
            files = {"tlscacert": "ca.pem", "tlscert": "server-cert.pem", "tlskey": "server-key.pem"}
            tls = ["--tlsverify", *(f"--{option}={folder}/tls/{file}" for option, file in files.items())]
        command = ["nsenter", "--mount", "--net", f"--target={holder.pid}", "--", "dockerd"]
        command += ["--host", f"tcp://{address}:{port}", "--host", f"unix://{folder}/docker.sock", *tls]
        command += [f"--config-file={folder}/daemon.json", "--bridge=none", "--iptables=false", "--ip6tables=false"]
        command += [f"--data-root={folder}/data", f"--exec-root={folder}/exec", f"--pidfile={folder}/pid"]
        address_there = EngineAddress(url=f"tcp://{address}:{port}", certificates=certificates)
        engine = RemoteEngine(address=address_there, command=command, folder=folder)
        try:
            engine.start()
            _copy_images(images, engine)
            yield engine
        finally:
            engine.stop()


@contextlib.contextmanager
def _namespaces(folder: Path, data_size: str | None) -> Iterator[tuple[subprocess.Popen[bytes], str]]:
    """Give a process with a mount and a network namespace of its own, and the address that is reached from here."""
    (folder / "data").mkdir()
    small = f"mount -t tmpfs -o size={data_size} tmpfs {folder}/data;" if data_size else ""
    script = f"mount -t tmpfs tmpfs /tmp; {small} ip link set lo up; touch {folder}/ready; exec sleep infinity"
    command = ["unshare", "--mount", "--net", "--propagation=private", "sh", "-c", script]
    # One cable and one network an engine; never a network by which this machine reaches others.
    number, held = claim("network", [at for at, one in enumerate(_NETWORKS) if not any(map(one.overlaps, _reached()))])
    ours, theirs = map(str, _NETWORKS[number].hosts())
    with held:
        with running(command, log=folder / "namespaces.log", environment=os.environ) as holder:
            wait_until((folder / "ready").exists, seconds=10, what="the namespaces of an engine are there")
            cable = f"de{holder.pid}"
            inside = f"nsenter --net --target={holder.pid} --"
            for line in (
                f"ip link add {cable} type veth peer name eth0 netns {holder.pid}",
                f"ip address add {ours}/30 dev {cable}",
                f"ip link set {cable} up",
                f"{inside} ip address add {theirs}/30 dev eth0",
                f"{inside} ip link set eth0 up",
            ):
                subprocess.run(line.split(), check=True, capture_output=True)
            yield holder, theirs
        # With the network namespace the cable goes too, a little later.
        wait_until(lambda: not Path("/sys/class/net", cable).exists(), seconds=60, what="a cable is gone")


def _reached() -> list[ipaddress.IPv4Network]:
    """Return the networks to which this machine has a route of their own."""
    routes = subprocess.run(["ip", "-json", "-4", "route"], check=True, capture_output=True).stdout
    return [ipaddress.IPv4Network(route["dst"]) for route in json.loads(routes) if route["dst"] != "default"]


def _copy_images(images: tuple[str, ...], engine: RemoteEngine) -> None:
    own = docker.from_env()
    with engine.client() as other:
        for image in images:
            other.images.load(b"".join(own.images.get(image).save(named=True)))
    own.close()
