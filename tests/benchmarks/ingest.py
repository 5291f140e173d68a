"""Files a second into the gateway beside DCMTK's storescp, in one run: ``python -m tests.benchmarks.ingest``.

The rounds of the two receivers alternate, so that what disturbs the machine disturbs both. The sender is a raw one
(``raw_sender``). TCP_NODELAY=1 for DCMTK. The gateway answers Success after fsync of file and folder; storescp does not
sync, which makes the comparison one of two different promises.
"""

from __future__ import annotations

import os
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from pydicom.uid import MRImageStorage, generate_uid

from deployments.demo import dcmtk
from tests.benchmarks.raw_sender import PreparedStudy, prepare, send
from tests.factories import ct_slice, write_instances
from tests.services import running, unused_port, wait_until

_ROUNDS = 3
_AE_TITLE = "STORESCP"
_LOADS = (("CT 512x512, 0.5 MB", 512, 100), ("MR 64x64, 10 KB", 64, 100))
_ASSOCIATIONS = (1, 8)


def main() -> None:
    """Measure and print."""
    with tempfile.TemporaryDirectory(prefix="dicomflow-bench-") as temporary, ExitStack() as stack:
        folder = Path(temporary)
        studies = {name: _study(folder / f"in-{edge}", edge, count) for name, edge, count in _LOADS}
        peers = {
            "DicomFlow gateway": stack.enter_context(_gateway(folder / "gateway")),
            "DCMTK storescp --fork": stack.enter_context(_storescp(folder / "storescp")),
        }
        for name, study in studies.items():
            for associations in _ASSOCIATIONS:
                _print_load(f"{name}, {associations} association(s)", _measure(peers, study, associations), peers)
        for name, (_, pid) in peers.items():
            print(f"peak memory of {name}'s main process: {_peak_rss_mebibytes(pid):.0f} MiB")


def _study(folder: Path, edge: int, count: int) -> PreparedStudy:
    folder.mkdir()
    uids = {"StudyInstanceUID": generate_uid(), "SeriesInstanceUID": generate_uid()}
    kind = {"Modality": "MR", "SOPClassUID": MRImageStorage} if edge < 512 else {}
    slices = [ct_slice(rows=edge, columns=edge, instance_number=n + 1, **uids, **kind) for n in range(count)]
    return prepare(write_instances(slices, folder))


def _measure(peers: dict[str, tuple[int, int]], study: PreparedStudy, associations: int) -> dict[str, list[float]]:
    rates: dict[str, list[float]] = {name: [] for name in peers}
    for round_number in range(_ROUNDS + 1):
        for name, (port, _) in peers.items():
            seconds = _seconds(lambda port=port: _send_side_by_side(study, port, associations))
            if round_number > 0:  # the first one warms memory and disk
                rates[name].append(len(study.instances) * associations / seconds)
    return rates


def _send_side_by_side(study: PreparedStudy, port: int, associations: int) -> None:
    failures: list[BaseException] = []

    def one() -> None:
        try:
            send(study, port=port, called_ae_title=_AE_TITLE)
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=one) for _ in range(associations)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if failures:
        raise failures[0]


def _seconds(work: Callable[[], None]) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def _print_load(title: str, rates: dict[str, list[float]], peers: dict[str, tuple[int, int]]) -> None:
    print(title)
    for name in peers:
        values = rates[name]
        print(f"  {name:24} {statistics.median(values):8.0f} files/s  ({min(values):.0f} to {max(values):.0f})")
    ours, theirs = (rates[name] for name in peers)
    ratios = [mine / other for mine, other in zip(ours, theirs, strict=True)]
    print(
        f"  ratio                    {statistics.median(ratios):8.2f}          ({min(ratios):.2f} to {max(ratios):.2f})"
    )


@contextmanager
def _gateway(folder: Path) -> Iterator[tuple[int, int]]:
    """Run the real gateway with no flow to trigger and no Prefect to reach: receiving must not need either."""
    port = unused_port()
    flows = folder / "flows"
    flows.mkdir(parents=True)
    environment = {
        **os.environ,
        "DATA_DIR": str(folder / "data"),
        "FLOW_DIRECTORY": str(flows),
        "AE_HOSTNAME": "127.0.0.1",
        "AE_PORT": str(port),
        "PREFECT_API_URL": f"http://127.0.0.1:{unused_port()}/api",
    }
    command = [sys.executable, "-m", "deployments.cli", "gateway"]
    with running(command, log=folder / "gateway.log", environment=environment) as process:
        wait_until(lambda: dcmtk.listens(port), seconds=60, what="the gateway listens")
        yield port, process.pid


@contextmanager
def _storescp(folder: Path) -> Iterator[tuple[int, int]]:
    port = unused_port()
    (folder / "out").mkdir(parents=True)
    command = [dcmtk.tool("storescp"), "--fork", "--aetitle", _AE_TITLE, "-od", str(folder / "out"), str(port)]
    with running(command, log=folder / "storescp.log", environment=dcmtk.environment()) as process:
        wait_until(lambda: dcmtk.listens(port), seconds=20, what="storescp listens")
        yield port, process.pid


def _peak_rss_mebibytes(pid: int) -> float:
    status = Path(f"/proc/{pid}/status").read_text()
    (line,) = (line for line in status.splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) / 1024


if __name__ == "__main__":
    main()
