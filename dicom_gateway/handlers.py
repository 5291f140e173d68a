"""pynetdicom's events -> intake -> DICOM status. What happens to one association, told to the rooms that know no DICOM
network.

An association's end is told by exactly one event only in good weather: a decoding error deep in pynetdicom, or a thread
that dies, tells nothing. Hence ``sweep``, which ends the receptions of associations that are over without a word.
"""

from __future__ import annotations

import logging
import re
import threading
from typing import Final, cast

from pynetdicom import evt
from pynetdicom.association import Association
from pynetdicom.dimse_messages import C_STORE_RQ
from pynetdicom.dimse_primitives import C_STORE
from pynetdicom.dsutils import encode_file_meta
from pynetdicom.events import Event, EventHandlerType

from dicom_gateway.errors import InstanceRefusedError, SpoolFullError
from dicom_gateway.intake import Intake
from dicom_gateway.spool import ReceivedInstance, Reception
from flows_engine.handoff.run_request import Sender

_log = logging.getLogger(__name__)

# PS3.4 B.2.3, table B.2-1, and PS3.7 C.4.2.1.
SUCCESS: Final = 0x0000
PROCESSING_FAILURE: Final = 0x0110
OUT_OF_RESOURCES: Final = 0xA700
DATA_SET_DOES_NOT_MATCH: Final = 0xA900

_UID: Final = re.compile(r"[0-9]+(\.[0-9]+)*\Z")
_NO_UID: Final = "."
_LONGEST_UID: Final = 64
_PREAMBLE: Final = b"\0" * 128 + b"DICM"


def is_uid(text: str | None) -> bool:
    """Tell whether ``text`` is digits and dots, at most 64 characters (PS3.5 9.1).

    A component with leading zeros is let pass: scanners send it, and it harms nobody.
    """
    return text is not None and len(text) <= _LONGEST_UID and _UID.match(text) is not None


def _watch_commands(event: Event) -> None:
    """Have ``_complete_command`` called first for what an association receives.

    pynetdicom's own logging comes before what a server binds, and where it fails on an odd command, nothing after it
    is called.
    """
    association = event.assoc
    bound = association.get_handlers(evt.EVT_DIMSE_RECV)
    # A notification event has a list of handlers, an intervention event (which this is not) a single one.
    earlier = list(bound) if isinstance(bound, list) else []
    for handler, _ in earlier:
        association.unbind(evt.EVT_DIMSE_RECV, handler)
    association.bind(evt.EVT_DIMSE_RECV, _complete_command)
    for handler, arguments in earlier:
        association.bind(evt.EVT_DIMSE_RECV, handler, arguments)


def _complete_command(event: Event) -> None:
    """Give a C-STORE command without a UID one that is none.

    pynetdicom drops a command that lacks one without a word, and its sender waits for an answer until it gives up. So
    it is answered like any other that is none.
    """
    if isinstance(event.message, C_STORE_RQ):
        for keyword in ("AffectedSOPInstanceUID", "AffectedSOPClassUID"):
            if not event.message.command_set.get(keyword):
                setattr(event.message.command_set, keyword, _NO_UID)


class Handlers:
    """Holds one reception an association, and ends each exactly once."""

    def __init__(self, intake: Intake) -> None:
        self._intake = intake
        self._receptions: dict[Association, Reception] = {}
        self._lock = threading.Lock()

    def bindings(self) -> list[EventHandlerType]:
        """Return what pynetdicom is to call, and when."""
        return [
            (evt.EVT_CONN_OPEN, _watch_commands),
            (evt.EVT_C_ECHO, self._on_echo),
            (evt.EVT_C_STORE, self._on_store),
            (evt.EVT_RELEASED, self._on_released),
            (evt.EVT_ABORTED, self._on_aborted),
        ]

    def sweep(self) -> None:
        """End the receptions of associations whose thread is gone."""
        with self._lock:
            gone = [association for association in self._receptions if not association.is_alive()]
        for association in gone:
            self._end(association, complete=False)

    def end_all(self) -> None:
        """End every reception that is still open, as incomplete."""
        with self._lock:
            open_ones = list(self._receptions)
        for association in open_ones:
            self._end(association, complete=False)

    def _on_echo(self, _event: Event) -> int:
        return SUCCESS

    def _on_store(self, event: Event) -> int:
        """Answer one C-STORE. Only a status may leave here: pynetdicom's own answer to an error would mislead."""
        try:
            return self._store(event)
        except InstanceRefusedError as error:
            _log.warning("an instance was refused with 0x%04X: %s", error.status, error, extra={"action": "store"})
            return error.status
        except SpoolFullError as error:
            _log.error("%s; the sender is told 0xA700", error, extra={"action": "store"})
            return OUT_OF_RESOURCES
        except Exception as error:  # noqa: BLE001  # outer edge; the trace may quote the data set, so it is not logged
            _log.error("an instance failed with %s", type(error).__name__, extra={"action": "store"})
            return PROCESSING_FAILURE

    def _store(self, event: Event) -> int:
        request = cast(C_STORE, event.request)
        if not is_uid(request.AffectedSOPInstanceUID) or not is_uid(request.AffectedSOPClassUID):
            reason = "the SOP Instance UID or SOP Class UID of the command is not a UID"
            raise InstanceRefusedError(reason, status=DATA_SET_DOES_NOT_MATCH)
        instance = ReceivedInstance(
            sop_instance_uid=str(request.AffectedSOPInstanceUID),
            transfer_syntax_uid=str(event.context.transfer_syntax),
            file_meta=_PREAMBLE + encode_file_meta(event.file_meta),
            data_set=request.DataSet.getvalue() if request.DataSet is not None else b"",
        )
        self._reception(event.assoc).store(instance)
        return SUCCESS

    def _reception(self, association: Association) -> Reception:
        with self._lock:
            reception = self._receptions.get(association)
            if reception is None:
                requestor = association.requestor
                address = requestor.address_info
                sender = Sender(
                    ae_title=requestor.ae_title.strip(),
                    host=address.address if address is not None else "",
                    port=address.port if address is not None else 0,
                )
                called = requestor.primitive.called_ae_title if requestor.primitive is not None else ""
                reception = self._intake.open(sender=sender, called_ae_title=(called or "").strip())
                self._receptions[association] = reception
            return reception

    def _on_released(self, event: Event) -> None:
        self._end(event.assoc, complete=True)

    def _on_aborted(self, event: Event) -> None:
        self._end(event.assoc, complete=False)

    def _end(self, association: Association, *, complete: bool) -> None:
        with self._lock:
            reception = self._receptions.pop(association, None)
        if reception is not None:
            self._intake.finish(reception, complete=complete)
