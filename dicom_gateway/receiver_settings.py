"""How to receive, as the gateway tells its receiving processes."""

from __future__ import annotations

import logging
from pathlib import Path

from pydantic import BaseModel, ConfigDict

from dicom_gateway.disk_room import DiskRoom
from dicom_gateway.peers import AssociationLimits, PeerRules
from dicom_gateway.reception import Durability
from dicom_gateway.spool import OnConflict
from dicom_gateway.tls import TlsFiles


class ReceiverSettings(BaseModel):
    """``processes`` of them share the connections of one port, or of two."""

    model_config = ConfigDict(frozen=True)

    ae_title: str
    hostname: str
    port: int
    """Speaks TLS where there is ``tls`` and no ``tls_port``."""
    tls_port: int | None = None
    tls: TlsFiles | None = None
    spool: Path
    durability: Durability = "instance"
    on_conflict: OnConflict = "keep_both"
    room: DiskRoom | None = None
    peers: PeerRules = PeerRules()
    limits: AssociationLimits = AssociationLimits(in_all=200, of_one_peer=200)
    processes: int = 1
    log_level: int = logging.INFO
    pynetdicom_log_level: str = "standard"
    is_fast: bool = True
    """Whether C-STOREs take the path of ``fast_store``, or pynetdicom's."""
    commitments: Path | None = None
    """Where requests for storage commitment are kept; None where there is no answer to them."""
    ledger: Path | None = None
    """By which committed instances are found."""
    lock: int | None = None
    """A descriptor that the processes inherit: whoever it locks out waits until they are gone."""
