"""One Store request: from the pieces of its body to a reception, and what became of each instance.

A request is what an association is: one reception, whose studies are complete where the body was.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Final

from dicom_gateway.association_store import OUT_OF_RESOURCES, SUCCESS, ArrivingInstance, refused
from dicom_gateway.errors import InstanceRefusedError, SpoolFullError
from dicom_gateway.multipart import MultipartParser, PartBegins, PartContent
from dicom_gateway.part10_head import HeadError, read_part10_head
from dicom_gateway.reception import Reception
from dicom_gateway.stow_answer import Outcome
from dicom_gateway.tally import Tally

_log = logging.getLogger(__name__)

_DICOM: Final = "application/dicom"
_CANNOT_UNDERSTAND: Final = 0xC000


class StowUpload:
    """Takes a body in pieces. Not for several threads at once. ``study_instance_uid`` is the one that all must have.

    ``open_reception`` is called for the first instance. Raises ``MalformedError``.
    """

    def __init__(
        self,
        *,
        boundary: str,
        open_reception: Callable[[], Reception],
        study_instance_uid: str | None,
        tally: Tally,
    ) -> None:
        self._parser = MultipartParser(boundary)
        self._open_reception = open_reception
        self._study_instance_uid = study_instance_uid
        self._tally = tally
        self._outcomes: list[Outcome] = []
        self._part: _Part | None = None
        self.reception: Reception | None = None
        self.is_sealed = False
        """Whether the body was complete, and all of it that is stored is safe."""

    def feed(self, piece: bytes) -> None:
        """Take the next piece. Raises ``MalformedError``."""
        for event in self._parser.feed(piece):
            if isinstance(event, PartBegins):
                self._part = _Part(event, self._begin)
            elif self._part is not None and isinstance(event, PartContent):
                self._part.write(event.content)
            elif self._part is not None:
                part, self._part = self._part, None
                outcome = part.finish()
                self._tally.answered(outcome.status, part.size_bytes, time.monotonic() - part.began)
                self._outcomes.append(outcome)

    def finish(self) -> tuple[Outcome, ...]:
        """Take note that the body is complete; return what became of its parts. Raises ``MalformedError``."""
        self._parser.finish()
        if self.reception is not None:
            try:
                self.reception.seal()
            except SpoolFullError as error:
                _log.error("%s; the request is answered as failed", error, extra={"action": "store"})
                return tuple(_unless_failed(outcome) for outcome in self._outcomes)
        self.is_sealed = True
        return tuple(self._outcomes)

    def close(self) -> None:
        """Store no more; what is half is forgotten."""
        if self._part is not None:
            self._part.abandon()
        if self.reception is not None:
            self.reception.close()

    def _begin(self, sop_class_uid: str, sop_instance_uid: str, transfer_syntax_uid: str) -> ArrivingInstance:
        try:
            if self.reception is None:
                self.reception = self._open_reception()
            incoming = self.reception.begin(
                sop_class_uid=sop_class_uid,
                sop_instance_uid=sop_instance_uid,
                transfer_syntax_uid=transfer_syntax_uid,
                study_instance_uid=self._study_instance_uid,
            )
        except Exception as error:  # noqa: BLE001  # a status is all that may leave, see ``refused``
            return ArrivingInstance(None, status=refused(error))
        return ArrivingInstance(incoming, status=SUCCESS)


class _Part:
    """One part, which should be a DICOM file. Its own file meta information is not kept: what stands before a data set
    that we keep is what we can vouch for, and a preamble is a place to hide a program in.
    """

    def __init__(self, begins: PartBegins, begin: Callable[[str, str, str], ArrivingInstance]) -> None:
        self._begin = begin
        self._head = bytearray()
        self._instance: ArrivingInstance | None = None
        self._outcome = Outcome(SUCCESS)
        self.began = time.monotonic()
        self.size_bytes = 0
        """How much of a data set came."""
        media_type = begins.headers.get("content-type", _DICOM).partition(";")[0].strip().lower()
        if media_type != _DICOM:
            self._refuse("a part is of another media type than application/dicom")

    def write(self, content: memoryview) -> None:
        if self._instance is not None:
            self._instance.write(content)
            self.size_bytes += len(content)
        elif self._outcome.status == SUCCESS:
            self._write_head(content)

    def finish(self) -> Outcome:
        if self._instance is not None:
            self._outcome = replace(self._outcome, status=self._instance.finish())
        elif self._outcome.status == SUCCESS:
            self._refuse("it ends before its data set begins")
        return self._outcome

    def abandon(self) -> None:
        if self._instance is not None:
            self._instance.abandon()

    def _write_head(self, content: memoryview) -> None:
        self._head += content
        try:
            head = read_part10_head(self._head)
        except HeadError as error:
            self._refuse(str(error))
            return
        if head is None:
            return
        self._outcome = Outcome(SUCCESS, head.sop_class_uid, head.sop_instance_uid)
        self._instance = self._begin(head.sop_class_uid, head.sop_instance_uid, head.transfer_syntax_uid)
        data_set, self._head = bytes(self._head[head.data_set_at :]), bytearray()
        if data_set:
            self._instance.write(memoryview(data_set))
            self.size_bytes += len(data_set)

    def _refuse(self, reason: str) -> None:
        self._head = bytearray()
        self._outcome = Outcome(refused(InstanceRefusedError(reason, status=_CANNOT_UNDERSTAND)))


def _unless_failed(outcome: Outcome) -> Outcome:
    return replace(outcome, status=OUT_OF_RESOURCES) if outcome.status == SUCCESS else outcome
