"""The C-STOREs of one association -> its reception, and the DIMSE status of each; of a failure, nothing else leaves.

The same statuses whichever way an object comes, fragment by fragment or whole (PS3.4 B.2.3, table B.2-1; PS3.7 C).
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from typing import Final

from dicom_gateway.dimse_command import StoreRequest
from dicom_gateway.errors import InstanceRefusedError, SpoolFullError
from dicom_gateway.reception import IncomingInstance, ReceivedInstance, Reception
from dicom_gateway.uid import is_uid, sent_sop_class_uid, sent_uid

_log = logging.getLogger(__name__)

SUCCESS: Final = 0x0000
PROCESSING_FAILURE: Final = 0x0110
OUT_OF_RESOURCES: Final = 0xA700
DATA_SET_DOES_NOT_MATCH: Final = 0xA900


class AssociationStore:
    """What one association stores. Not for several threads.

    ``open_reception`` is called for its first instance, ``stored_whole`` with status and size of each that comes whole.
    """

    def __init__(
        self,
        open_reception: Callable[[], Reception],
        *,
        stored_whole: Callable[[int, int], object] = lambda _status, _size_bytes: None,
    ) -> None:
        self._open_reception = open_reception
        self._stored_whole = stored_whole
        self._reception: Reception | None = None
        self.transfer_syntaxes: Mapping[int, str] = {}
        """By the id of the presentation context; known once the association is established."""

    def begin(self, request: StoreRequest, context_id: int) -> ArrivingInstance:
        """Take a request whose data set comes in fragments."""
        try:
            sop_class_uid = sent_sop_class_uid(request.sop_class_uid)
            sop_instance_uid = sent_uid(request.sop_instance_uid)
            if sop_class_uid is None or sop_instance_uid is None:
                return ArrivingInstance(None, status=refused(_not_a_uid()))
            incoming = self._reception_now().begin(
                sop_class_uid=sop_class_uid,
                sop_instance_uid=sop_instance_uid,
                transfer_syntax_uid=self.transfer_syntaxes[context_id],
            )
        except Exception as error:  # noqa: BLE001  # a status is all that may leave, see ``refused``
            return ArrivingInstance(None, status=refused(error))
        return ArrivingInstance(incoming, status=SUCCESS)

    def store(
        self, *, sop_class_uid: str | None, sop_instance_uid: str | None, transfer_syntax_uid: str, data_set: bytes
    ) -> int:
        """Keep an object that came whole, and return the status to answer with."""
        status = self._store(
            sop_class_uid=sop_class_uid,
            sop_instance_uid=sop_instance_uid,
            transfer_syntax_uid=transfer_syntax_uid,
            data_set=data_set,
        )
        self._stored_whole(status, len(data_set))
        return status

    def _store(
        self, *, sop_class_uid: str | None, sop_instance_uid: str | None, transfer_syntax_uid: str, data_set: bytes
    ) -> int:
        try:
            instance = ReceivedInstance(
                sop_class_uid=_uid(sop_class_uid),
                sop_instance_uid=_uid(sop_instance_uid),
                transfer_syntax_uid=transfer_syntax_uid,
                data_set=data_set,
            )
            self._reception_now().store(instance)
        except Exception as error:  # noqa: BLE001  # a status is all that may leave, see ``refused``
            return refused(error)
        return SUCCESS

    def seal(self) -> bool:
        """Note that this was all; return whether that is safe, so that the release may be answered."""
        if self._reception is None:
            return True
        try:
            self._reception.seal()
        except SpoolFullError as error:
            _log.error("%s; the release is not answered", error, extra={"action": "store"})
            return False
        return True

    def close(self) -> None:
        """Store no more."""
        if self._reception is not None:
            self._reception.close()

    def _reception_now(self) -> Reception:
        if self._reception is None:
            self._reception = self._open_reception()
        return self._reception


class ArrivingInstance:
    """An instance that comes in fragments. What follows on a failure is taken, and thrown away."""

    __slots__ = ("_incoming", "_status")

    def __init__(self, incoming: IncomingInstance | None, *, status: int) -> None:
        self._incoming = incoming
        self._status = status

    def write(self, fragment: memoryview) -> None:
        """Take the next fragment of the data set."""
        if self._incoming is not None:
            self._try(self._incoming.write, fragment)

    def end(self) -> None:
        """Take note that it has come whole, where ``make_whole`` and ``finish`` follow for several at once."""
        if self._incoming is not None:
            self._try(self._incoming.end)

    def make_whole(self) -> None:
        """Have it on the disk, but for what ``finish`` adds."""
        if self._incoming is not None:
            self._try(self._incoming.make_whole)

    def finish(self) -> int:
        """Have the instance kept, and return the status to answer with."""
        incoming, self._incoming = self._incoming, None
        if incoming is not None:
            try:
                incoming.commit()
            except Exception as error:  # noqa: BLE001  # a status is all that may leave, see ``refused``
                incoming.discard()
                self._status = refused(error)
        return self._status

    def abandon(self) -> None:
        """Forget the instance: the rest will not come."""
        if self._incoming is not None:
            self._incoming.discard()
            self._incoming = None

    def _try(self, step: Callable[..., None], *arguments: object) -> None:
        try:
            step(*arguments)
        except Exception as error:  # noqa: BLE001  # a status is all that may leave, see ``refused``
            self._fail(error)

    def _fail(self, error: Exception) -> None:
        self.abandon()
        self._status = refused(error)


def refused(error: Exception) -> int:
    """Return the status that tells a sender of ``error``, which is logged here."""
    if isinstance(error, InstanceRefusedError):
        _log.warning("an instance was refused with 0x%04X: %s", error.status, error, extra={"action": "store"})
        return error.status
    if isinstance(error, SpoolFullError):
        _log.error("%s; the sender is told 0xA700", error, extra={"action": "store"})
        return OUT_OF_RESOURCES
    # The trace may quote the data set, so it is not logged.
    _log.error("an instance failed with %s", type(error).__name__, extra={"action": "store"})
    return PROCESSING_FAILURE


def _uid(text: str | None) -> str:
    if text is None or not is_uid(text):
        raise _not_a_uid()
    return text


def _not_a_uid() -> InstanceRefusedError:
    reason = "the SOP Instance UID or SOP Class UID of the command is not a UID"
    return InstanceRefusedError(reason, status=DATA_SET_DOES_NOT_MATCH)
