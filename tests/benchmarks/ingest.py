"""Files a second into the gateway beside DCMTK and Orthanc, in one run: ``python -m tests.benchmarks.ingest``.

The rounds of all receivers alternate, so that what disturbs the machine disturbs all. The sender is a raw one
(``raw_sender``), with a process an association. TCP_NODELAY=1 for everyone. It waits for each answer, but where a row
says ``window``: there it proposes that any number may be on their way (PS3.7 D.3.3.3). Promises differ: storescp never
syncs, Orthanc does or does not, the gateway does as ``DURABILITY`` says; like is compared with like in the ratios.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import psutil
from pydicom.uid import MRImageStorage, generate_uid

from deployments.demo import dcmtk
from tests.benchmarks.raw_sender import PreparedStudy, prepare, send
from tests.factories import ct_slice, write_instances
from tests.services import running, unused_port, wait_until

_AE_TITLE = "STORESCP"
_LOADS = (("CT 0.5 MB", 512, 200), ("MR 10 KB", 64, 500))
_ASSOCIATIONS = (1, 8)
_NO_LIMIT = 0
_GATEWAYS = {f"gateway, {durability}": durability for durability in ("instance", "association", "none")}
_WINDOW = "gateway, instance, window"
_DCMTK, _DCMTK_TUNED = "storescp --fork", "storescp --fork +B -pdu 131072"
_ORTHANC, _ORTHANC_SYNC = "Orthanc, no sync", "Orthanc, sync"
_RATIOS = (
    ("gateway, none", _DCMTK),
    ("gateway, association", _DCMTK),
    ("gateway, none", _DCMTK_TUNED),
    ("gateway, association", _DCMTK_TUNED),
    ("gateway, instance", _DCMTK),
    ("gateway, instance", _ORTHANC_SYNC),
    (_WINDOW, "gateway, instance"),
    (_WINDOW, _DCMTK),
    (_WINDOW, _ORTHANC_SYNC),
)


@dataclass
class Peer:
    """A receiver that runs."""

    port: int
    process: psutil.Process
    store: Path
    window: int = 1
    """What the sender proposes to it."""
    rates: list[float] = field(default_factory=list)
    cpu_ms: list[float] = field(default_factory=list)
    peak_bytes: int = 0

    def cpu_seconds(self) -> float:
        """Return what it has used, its children included, also those that are gone."""
        total = 0.0
        for process in [self.process, *self.process.children(recursive=True)]:
            times = process.cpu_times()
            total += times.user + times.system + times.children_user + times.children_system
        return total

    def memory_bytes(self) -> int:
        """Return what it holds now; what processes share is counted once."""
        total = 0
        for process in [self.process, *self.process.children(recursive=True)]:
            with suppress(psutil.NoSuchProcess):  # one a connection, which ends with it
                total += process.memory_full_info().pss
        return total


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--files", type=int, help="how many an association sends, in place of those of each load")
    parser.add_argument("--only", nargs="*", help="receivers whose names contain one of these")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="dicomflow-bench-") as temporary, ExitStack() as stack:
        folder = Path(temporary)
        studies = {name: _study(folder / f"in-{edge}", edge, arguments.files or count) for name, edge, count in _LOADS}
        peers = {
            name: stack.enter_context(start(folder / f"peer-{number}"))
            for number, (name, start) in enumerate(_receivers().items())
            if not arguments.only or any(part in name for part in arguments.only)
        }
        round_number = 0
        for name, study in studies.items():
            for associations in _ASSOCIATIONS:
                round_number = _measure(peers, study, associations, arguments.rounds, round_number)
                _print_load(f"{name}, {associations} association(s)", peers)


def _receivers() -> dict[str, Callable]:
    receivers = {
        name: lambda folder, durability=durability: _gateway(folder, durability)
        for name, durability in _GATEWAYS.items()
    }
    receivers[_WINDOW] = lambda folder: _gateway(folder, "instance", window=_NO_LIMIT)
    receivers[_DCMTK] = _storescp
    receivers[_DCMTK_TUNED] = lambda folder: _storescp(folder, "+B", "-pdu", "131072")
    if shutil.which("Orthanc"):
        receivers[_ORTHANC] = lambda folder: _orthanc(folder, sync=False)
        receivers[_ORTHANC_SYNC] = lambda folder: _orthanc(folder, sync=True)
    else:
        print("Orthanc is not installed, and is left out")
    return receivers


def _study(folder: Path, edge: int, count: int) -> PreparedStudy:
    folder.mkdir()
    uids = {"StudyInstanceUID": generate_uid(), "SeriesInstanceUID": generate_uid()}
    kind = {"Modality": "MR", "SOPClassUID": MRImageStorage} if edge < 512 else {}
    slices = [ct_slice(rows=edge, columns=edge, instance_number=n + 1, **uids, **kind) for n in range(count)]
    return prepare(write_instances(slices, folder))


def _measure(peers: dict[str, Peer], study: PreparedStudy, associations: int, rounds: int, round_number: int) -> int:
    for peer in peers.values():
        peer.rates, peer.cpu_ms, peer.peak_bytes = [], [], 0
    files = len(study.instances) * associations
    for turn in range(rounds + 1):
        for peer in peers.values():
            round_number += 1
            before = peer.cpu_seconds()
            seconds = send(
                study,
                port=peer.port,
                called_ae_title=_AE_TITLE,
                associations=associations,
                round_number=round_number,
                window=peer.window,
            )
            peer.peak_bytes = max(peer.peak_bytes, peer.memory_bytes())
            _wait_until_idle(peer)
            if turn > 0:  # the first one warms memory and disk
                peer.rates.append(files / seconds)
                peer.cpu_ms.append((peer.cpu_seconds() - before) * 1000 / files)
    return round_number


def _wait_until_idle(peer: Peer) -> None:
    """Return once a receiver has done what it does after the last release, and its disk is quiet."""
    os.sync()
    used = -1.0
    while (now := peer.cpu_seconds()) - used > 0.02:
        used = now
        psutil.cpu_percent(interval=0.2)


def _print_load(title: str, peers: dict[str, Peer]) -> None:
    print(title)
    for name, peer in peers.items():
        rates = peer.rates
        print(
            f"  {name:32} {statistics.median(rates):7.0f} files/s ({min(rates):.0f} to {max(rates):.0f})"
            f"  {statistics.median(peer.cpu_ms):6.2f} CPU ms a file  {peer.peak_bytes / 2**20:5.0f} MiB"
        )
    for ours, theirs in _RATIOS:
        if ours in peers and theirs in peers:
            _print_ratio(f"{ours} / {theirs}", peers[ours].rates, peers[theirs].rates)
    sys.stdout.flush()


def _print_ratio(title: str, ours: Sequence[float], theirs: Sequence[float]) -> None:
    ratios = [mine / other for mine, other in zip(ours, theirs, strict=True)]
    print(f"  {title:60} {statistics.median(ratios):6.2f} ({min(ratios):.2f} to {max(ratios):.2f})")


@contextmanager
def _gateway(folder: Path, durability: str, *, window: int = 1) -> Iterator[Peer]:
    """Run the real gateway with no flow to trigger and no Prefect to reach: receiving must not need either."""
    flows = folder / "flows"
    flows.mkdir(parents=True)
    port = unused_port()
    environment = {
        **os.environ,
        "DATA_DIR": str(folder / "data"),
        "FLOW_DIRECTORY": str(flows),
        "AE_HOSTNAME": "127.0.0.1",
        "AE_PORT": str(port),
        "DURABILITY": durability,
        "PREFECT_API_URL": f"http://127.0.0.1:{unused_port()}/api",
    }
    command = [sys.executable, "-m", "deployments.cli", "gateway"]
    with _peer(command, folder, port, environment) as peer:
        peer.window = window
        yield peer


@contextmanager
def _storescp(folder: Path, *options: str) -> Iterator[Peer]:
    port = unused_port()
    (folder / "out").mkdir(parents=True)
    command = [
        dcmtk.tool("storescp"),
        "--fork",
        *options,
        "--aetitle",
        _AE_TITLE,
        "-od",
        str(folder / "out"),
        str(port),
    ]
    with _peer(command, folder, port, dcmtk.environment()) as peer:
        yield peer


@contextmanager
def _orthanc(folder: Path, *, sync: bool) -> Iterator[Peer]:
    folder.mkdir()
    port = unused_port()
    configuration = {
        "StorageDirectory": str(folder / "db"),
        "HttpPort": unused_port(),
        "DicomAet": _AE_TITLE,
        "DicomPort": port,
        "SyncStorageArea": sync,
        "RemoteAccessAllowed": False,
        "DicomCheckCalledAet": False,
    }
    path = folder / "orthanc.json"
    path.write_text(json.dumps(configuration))
    environment = {**os.environ, "TCP_NODELAY": "1"}
    with _peer([str(shutil.which("Orthanc")), str(path)], folder, port, environment) as peer:
        yield peer


@contextmanager
def _peer(command: list[str], folder: Path, port: int, environment: dict[str, str]) -> Iterator[Peer]:
    with running(command, log=folder / "log", environment=environment) as process:
        wait_until(lambda: dcmtk.listens(port), seconds=60, what=f"{command[0]} listens")
        yield Peer(port=port, process=psutil.Process(process.pid), store=folder)


if __name__ == "__main__":
    main()
