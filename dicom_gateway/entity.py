"""The application entity: what it negotiates. pynetdicom's settings are all here."""

from __future__ import annotations

import logging
from typing import Final

from pydicom import config as pydicom_config
from pydicom.uid import UID
from pynetdicom import AE, ALL_TRANSFER_SYNTAXES, _config
from pynetdicom.presentation import NonPatientObjectPresentationContexts

from dicom_gateway.commitment import STORAGE_COMMITMENT
from dicom_gateway.file_meta import IMPLEMENTATION_CLASS_UID, IMPLEMENTATION_VERSION_NAME

_VERIFICATION: Final = "1.2.840.10008.1.1"
_NO_LIMIT: Final = 1_000_000
LARGEST_PDU_BYTES: Final = 256 * 1024

SILENCE_SECONDS: Final = 300.0
"""A peer that says nothing between two messages for so long is taken for dead. A scanner may pause for minutes."""
UNFINISHED_SECONDS: Final = 60.0
"""A peer that falls silent in the middle of a PDU for so long is taken for dead."""
NEGOTIATION_SECONDS: Final = 30.0


def make_entity(ae_title: str) -> AE:
    """Return the storage SCP. Changes pynetdicom's process-wide settings."""
    _accept_every_storage_class()
    entity = AE(ae_title=ae_title)
    entity.implementation_class_uid = UID(IMPLEMENTATION_CLASS_UID)
    entity.implementation_version_name = IMPLEMENTATION_VERSION_NAME
    entity.maximum_associations = _NO_LIMIT  # whoever accepts connections counts them
    entity.maximum_pdu_size = LARGEST_PDU_BYTES
    entity.network_timeout = SILENCE_SECONDS
    entity.dimse_timeout = SILENCE_SECONDS
    entity.acse_timeout = NEGOTIATION_SECONDS
    entity.add_supported_context(_VERIFICATION, ALL_TRANSFER_SYNTAXES)
    entity.add_supported_context(STORAGE_COMMITMENT)
    # Known to pynetdicom, but not as storage: hanging protocols, colour palettes, implant templates and the like.
    for context in NonPatientObjectPresentationContexts:
        entity.add_supported_context(str(context.abstract_syntax), ALL_TRANSFER_SYNTAXES)
    return entity


def configure_pynetdicom_logging(level: str) -> None:
    """Set how much pynetdicom tells: ``none`` (its warnings), ``standard``, or ``debug`` (may show patient data)."""
    _config.LOG_HANDLER_LEVEL = "none" if level == "none" else "standard"
    levels = {"none": logging.WARNING, "standard": logging.INFO, "debug": logging.DEBUG}
    logging.getLogger("pynetdicom").setLevel(levels[level])


def _accept_every_storage_class() -> None:
    """Change pynetdicom's process-wide settings: every storage class is accepted, and no UID ends an association.

    With its own validation a single odd UID aborts the association, and the sender's other instances with it; the
    gateway judges UIDs instead, and answers for that one instance.
    """
    _config.UNRESTRICTED_STORAGE_SERVICE = True
    _config.VALIDATORS["UI"] = _any_uid
    # Both libraries would repeat the sender's text, whatever that is, for each odd value of a command.
    pydicom_config.settings.reading_validation_mode = pydicom_config.IGNORE
    for name in ("pydicom", "pynetdicom.utils"):
        logging.getLogger(name).setLevel(logging.CRITICAL)


def _any_uid(_value: UID) -> tuple[bool, str]:
    return True, ""
