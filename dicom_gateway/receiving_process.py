"""One of the processes that receive: ``python -m dicom_gateway.receiving_process DESCRIPTOR``, started by the gateway.

It gets connections from the gateway, serves them, and tells what has come of them. What it stores lies on disk, so that
nothing is lost with it; when the gateway dies, it ends its associations and follows.
"""

from __future__ import annotations

import logging
import os
import resource
import signal
import socket
import sys
import threading
from contextlib import suppress
from datetime import UTC, datetime
from functools import partial
from typing import Final

from dicom_gateway.commitment_folder import CommitmentFolder
from dicom_gateway.commitment_scp import Commitment
from dicom_gateway.committed_instances import CommittedInstances
from dicom_gateway.entity import configure_pynetdicom_logging, make_entity
from dicom_gateway.peers import Rejection
from dicom_gateway.process_channel import ProcessChannel
from dicom_gateway.receiver_settings import ReceiverSettings
from dicom_gateway.reception import Reception
from dicom_gateway.serving import Serving
from dicom_gateway.spool import Spool
from dicom_gateway.tally import Tally
from dicom_gateway.telling_counts import TellingCounts
from dicom_gateway.tls import server_context
from flows_engine.handoff.run_request import Sender

_LONGEST_LOG_LINE: Final = 4000
_LOGGED: Final = ("action", "reception")


class ToTheGateway(logging.Handler):
    """Has the gateway log what this process has to say."""

    def __init__(self, channel: ProcessChannel) -> None:
        super().__init__()
        self._channel = channel

    def emit(self, record: logging.LogRecord) -> None:
        """Send a record; a trace may quote what a peer sent, and stays here."""
        extra = {name: record.__dict__[name] for name in _LOGGED if name in record.__dict__}
        text = record.getMessage()[:_LONGEST_LOG_LINE]
        self._channel.send("log", name=record.name, level=record.levelno, text=text, extra=extra)


class ToldReceptions:
    """The spool, and word to the gateway of what is in it."""

    def __init__(self, spool: Spool, channel: ProcessChannel) -> None:
        self._spool = spool
        self._channel = channel

    def open(self, *, sender: Sender, called_ae_title: str) -> Reception:
        """Return the place for the instances of one association that begins now."""
        reception = self._spool.open(sender=sender, called_ae_title=called_ae_title, received_at=datetime.now(UTC))
        # Before it is on disk: when this process dies, the gateway knows whose files these are.
        self._channel.send("opened", reception=reception.id)
        return reception

    def ended(self, reception_id: str, *, complete: bool) -> None:
        """Tell that nothing more will come into a reception."""
        self._channel.send("ended", reception=reception_id, complete=complete)


def main(descriptor: int) -> None:
    """Receive until told to stop, or until the gateway is gone."""
    # Ctrl-C reaches the whole group; the gateway says when to stop.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    raise_the_number_of_descriptors()
    channel = ProcessChannel(socket.socket(fileno=descriptor))
    message = channel.receive()
    if message is None:
        return
    settings = ReceiverSettings.model_validate(message.values)
    logging.basicConfig(level=settings.log_level, handlers=[ToTheGateway(channel)])
    configure_pynetdicom_logging(settings.pynetdicom_log_level)
    spool = Spool(settings.spool, durability=settings.durability, room=settings.room, on_conflict=settings.on_conflict)
    tally = Tally()
    counts = TellingCounts(tally, channel)
    serving = Serving(
        make_entity(settings.ae_title),
        ToldReceptions(spool, channel),
        peers=settings.peers,
        tls=server_context(settings.tls) if settings.tls is not None else None,
        is_fast=settings.is_fast,
        is_synced=settings.durability == "instance",
        tally=tally,
        commitment=_commitment(settings),
    )
    channel.send("ready")
    counts.start()
    _serve(channel, serving, counts)
    counts.tell()
    # At once, whatever threads there are: all that was acknowledged is on disk. Another gateway may be waiting.
    os._exit(0)


def raise_the_number_of_descriptors() -> None:
    """Have as many descriptors as the system allows: a few an association, and the default is for programs with few."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    with suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


def _commitment(settings: ReceiverSettings) -> Commitment | None:
    if settings.commitments is None or settings.ledger is None:
        return None
    return Commitment(
        CommitmentFolder(settings.commitments),
        CommittedInstances(settings.spool.parent, ledger=settings.ledger, durability=settings.durability),
    )


def _serve(channel: ProcessChannel, serving: Serving, counts: TellingCounts) -> None:
    while (message := channel.receive()) is not None:
        if message.kind == "stop":
            serving.stop(grace_seconds=float(message.values["grace_seconds"]))
            return
        if message.kind == "serve" and message.descriptor is None:
            # This process had no descriptor left for it: the system has closed it.
            _closed(channel, counts, number=message.values["number"])
        elif message.kind == "serve" and message.descriptor is not None:
            rejection = message.values["rejection"]
            serving.serve(
                socket.socket(fileno=message.descriptor),
                is_secure=message.values["is_secure"],
                rejection=Rejection(**rejection) if rejection else None,
                on_end=partial(_closed, channel, counts, number=message.values["number"]),
            )


def _closed(channel: ProcessChannel, counts: TellingCounts, *, number: int) -> None:
    counts.tell()
    channel.send("closed", number=number)


if __name__ == "__main__":
    threading.current_thread().name = "control"
    main(int(sys.argv[1]))
