"""A receiver with processes of its own, and what its spool has."""

from __future__ import annotations

from pathlib import Path

import psutil

from dicom_gateway.receiver import Receiver, ReceiverSettings
from dicom_gateway.spool import Spool
from tests.services import wait_until


class Receiving:
    """Runs from the start; ``settings`` are those of the receiver beside its folder and port."""

    def __init__(self, root: Path, **settings: object) -> None:
        self.spool = Spool(root)
        self.ended: list[tuple[object, ...]] = []
        self.receiver = Receiver(
            ReceiverSettings(ae_title="STORESCP", hostname="localhost", port=0, spool=root, **settings),
            on_ended=lambda *ended: self.ended.append(ended),
        )
        self.receiver.start()
        self.port = self.receiver.port

    @property
    def process(self) -> psutil.Process:
        """The first of those that receive."""
        return psutil.Process(self.receiver._keeper.processes[0].pid)

    def files(self) -> dict[str, Path]:
        """Return what lies in the spool, by name."""
        return {path.name: path for path in self.spool.root.rglob("*.dcm")}

    def stored(self) -> dict[str, bytes]:
        """Return the content of each instance by its UID, once all associations are over."""
        wait_until(lambda: self.receiver.open_connections == 0, seconds=30, what="all associations are over")
        files = {}
        for reception in self.spool.ids():
            for study in self.spool.collect(reception, complete=True):
                files |= {path.stem: path.read_bytes() for path in study.folder.rglob("*.dcm")}
        return files
