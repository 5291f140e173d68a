"""The process that receives over HTTP: ``python -m dicom_gateway.stow_process DESCRIPTOR``, started by the gateway.

Like those that receive over DICOM, it tells the gateway what has come, and lies about nothing when it dies: what it
answered for is on disk.
"""

from __future__ import annotations

import logging
import os
import signal
import socket
import sys
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter

from dicom_gateway.disk_room import DiskRoom
from dicom_gateway.http_connections import OpenConnections
from dicom_gateway.http_server import HttpServer
from dicom_gateway.peers import AssociationLimits, PeerRules
from dicom_gateway.process_channel import ProcessChannel
from dicom_gateway.receiving_process import ToldReceptions, ToTheGateway, raise_the_number_of_descriptors
from dicom_gateway.spool import Spool
from dicom_gateway.stow_application import StowDoor
from dicom_gateway.stow_credentials import StowCredentials
from dicom_gateway.tally import Tally
from dicom_gateway.telling_counts import TellingCounts


def main(descriptor: int) -> None:
    """Receive until told to stop, or until the gateway is gone."""
    # Ctrl-C reaches the whole group; the gateway says when to stop.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    raise_the_number_of_descriptors()
    channel = ProcessChannel(socket.socket(fileno=descriptor))
    settings = channel.receive()
    if settings is None or settings.descriptor is None:
        return
    values = settings.values
    logging.basicConfig(level=values["log_level"], handlers=[ToTheGateway(channel)])
    tally = Tally()
    counts = TellingCounts(tally, channel)
    spool = Path(values["spool"])
    door = StowDoor(
        receptions=ToldReceptions(
            Spool(
                spool,
                durability=values["durability"],
                on_conflict=values["on_conflict"],
                room=_room(values["room"]),
            ),
            channel,
        ),
        spool=spool,
        ae_title=values["ae_title"],
        credentials=StowCredentials(**values["credentials"]),
        peers=TypeAdapter(PeerRules).validate_python(values["peers"]),
        tally=tally,
    )
    connections = OpenConnections(AssociationLimits(**values["limits"]), refused=tally.refused)
    server = HttpServer(door.application(), name="stow", connections=connections)
    server.start(socket.socket(fileno=settings.descriptor))
    channel.send("ready")
    counts.start()
    message = channel.receive()
    if message is not None:
        server.stop(grace_seconds=float(message.values["grace_seconds"]))
    counts.tell()
    # At once, whatever threads there are: all that was answered for is on disk. Another gateway may be waiting.
    os._exit(0)


def _room(values: Mapping[str, Any] | None) -> DiskRoom | None:
    return None if values is None else DiskRoom(**{**values, "folder": Path(values["folder"])})


if __name__ == "__main__":
    threading.current_thread().name = "control"
    main(int(sys.argv[1]))
