"""From the sender's release to the result at its destination: ``python -m tests.benchmarks.end_to_end``.

Everything that ``dicomflow up`` starts, on an otherwise idle host; studies of 100 CT slices (0.5 MB each) one after
another, one busybox model that copies its input, one DCMTK storescp as destination (TCP_NODELAY=1).
"""

from __future__ import annotations

import os
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import docker
import yaml
from pydicom.uid import generate_uid

from deployments.demo import dcmtk
from deployments.demo.run import Folders, demo_host, free_port
from tests.benchmarks.raw_sender import prepare, send
from tests.benchmarks.statistics_line import spread
from tests.factories import copying_model_keys, ct_slice, write_instances
from tests.services import wait_until

_STUDIES = 10
_SLICES = 100
_PATIENCE_SECONDS = 120.0
_AE_TITLE = "DESTINATION"


def main() -> None:
    """Measure and print."""
    with tempfile.TemporaryDirectory(prefix="dicomflow-bench-") as temporary:
        folders = Folders.below(Path(temporary))
        port = free_port()
        flow = {
            "triggers": [{"Modality": "CT"}],
            "models": [copying_model_keys()],
            "destinations": [{"host": "127.0.0.1", "port": port, "ae_title": _AE_TITLE}],
        }
        (folders.flows / "copy.yaml").write_text(yaml.safe_dump(flow))
        uids = {"StudyInstanceUID": generate_uid(), "SeriesInstanceUID": generate_uid()}
        slices = [ct_slice(rows=512, columns=512, instance_number=n + 1, **uids) for n in range(_SLICES)]
        study = prepare(write_instances(slices, folders.sent))
        to_container, to_last_instance = [], []
        with (
            dcmtk.receiver(folders.delivered, port=port, ae_title=_AE_TITLE),
            demo_host(folders, environ=os.environ) as host,
            _container_starts() as starts,
        ):
            for number in range(_STUDIES + 1):
                for file in folders.delivered.iterdir():
                    file.unlink()
                starts.clear()
                send(study, port=host.settings.ae_port, called_ae_title=host.settings.ae_title)
                released = time.time()
                wait_until(
                    lambda: len(list(folders.delivered.iterdir())) == _SLICES,
                    seconds=_PATIENCE_SECONDS,
                    what="all instances are delivered",
                )
                if number > 0:  # the first study warms caches
                    to_container.append(starts[0] - released)
                    to_last_instance.append(time.time() - released)
                time.sleep(3)  # the run ends, and the host is idle again
        print(f"{_STUDIES} studies of {_SLICES} CT slices, one copying model, one destination, one at a time")
        print(f"  release -> first container start      {spread(to_container, 's')}")
        print(f"  release -> last instance delivered    {spread(to_last_instance, 's')}")


@contextmanager
def _container_starts() -> Iterator[list[float]]:
    """Give a list that grows by the time (Unix) of every start of a container of ours, as the engine reports it."""
    client = docker.from_env()
    events = client.events(decode=True, filters={"event": "start", "label": "dicomflow.run"})
    starts: list[float] = []
    thread = threading.Thread(
        target=lambda: [starts.append(event["timeNano"] / 1e9) for event in events], name="events", daemon=True
    )
    thread.start()
    try:
        yield starts
    finally:
        events.close()
        client.close()


if __name__ == "__main__":
    main()
