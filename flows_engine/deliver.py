"""The files of a run's last output folder, to one destination."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from pydantic import BaseModel, ConfigDict

from flows_engine.delivery_journal import DeliveryJournal
from flows_engine.errors import DeliveryRefusedError, DestinationUnavailableError, NothingToSendError
from flows_engine.interfaces import Destination, Rejection
from flows_engine.output_files import is_dicom, result_files

_MAX_REASONS: Final = 3


class DeliveryResult(BaseModel):
    """What one destination has now: all of it, or there would be an error instead."""

    model_config = ConfigDict(frozen=True)

    destination: str
    file_count: int
    """The instances that the destination confirmed, in this attempt or in an earlier one."""
    sent_count: int
    """Those of them that were sent in this attempt."""
    not_dicom_count: int


def deliver(
    folder: Path,
    *,
    destination: Destination,
    journal_path: Path,
    logger: logging.Logger | logging.LoggerAdapter[logging.Logger],
) -> DeliveryResult:
    """Send every DICOM file of ``folder``, at any depth, that ``destination`` has not confirmed yet.

    Raises ``NothingToSendError`` where the folder has no DICOM file, ``DestinationUnavailableError`` where a retry may
    help (it sends only what is missing), ``DeliveryRefusedError`` where the destination does not want some of them.
    """
    found = result_files(folder)
    files = tuple(file for file in found.files if is_dicom(file))
    not_dicom_count = len(found.files) - len(files)
    if not files:
        raise NothingToSendError(
            f"nothing to send to {destination.name}: the last model left {not_dicom_count} files, none of them DICOM"
        )
    if not_dicom_count:
        logger.warning("%d files that are not DICOM are not sent to %s", not_dicom_count, destination.name)
    with DeliveryJournal(journal_path, folder=folder, destination=destination.name) as journal:
        missing = journal.missing(files)
        if len(missing) < len(files):
            logger.info("%s has %d of %d instances already", destination.name, len(files) - len(missing), len(files))
        if missing:
            report = destination.deliver(missing, on_delivered=journal.add)
            _raise_for(report.rejected, destination=destination, total=len(files))
    logger.info("%s confirmed %d instances", destination.name, len(files), extra={"action": "delivered"})
    return DeliveryResult(
        destination=destination.name,
        file_count=len(files),
        sent_count=len(missing),
        not_dicom_count=not_dicom_count,
    )


def _raise_for(rejected: Sequence[Rejection], *, destination: Destination, total: int) -> None:
    if not rejected:
        return
    reasons = Counter(rejection.reason for rejection in rejected)
    words = "; ".join(f"{count} times {reason}" for reason, count in reasons.most_common(_MAX_REASONS))
    if len(reasons) > _MAX_REASONS:
        words += f"; and {len(reasons) - _MAX_REASONS} more reasons"
    sentence = f"{destination.name} did not take {len(rejected)} of {total} instances: {words}"
    if all(_is_out_of_resources(rejection.status) for rejection in rejected):
        raise DestinationUnavailableError(sentence)
    raise DeliveryRefusedError(sentence)


def _is_out_of_resources(status: int | None) -> bool:
    """PS3.4 B.2.3: 0xA7xx, Refused: Out of Resources. It passes when the receiver has room again."""
    return status is not None and status & 0xFF00 == 0xA700
