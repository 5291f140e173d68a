"""pynetdicom's events -> what an association stores -> DICOM status; for all that ``fast_store`` does not take."""

from __future__ import annotations

from typing import Final, cast

from pynetdicom import evt
from pynetdicom.association import Association
from pynetdicom.dimse_messages import C_STORE_RQ
from pynetdicom.dimse_primitives import C_STORE
from pynetdicom.events import Event

from dicom_gateway.association_store import SUCCESS, AssociationStore

_NO_UID: Final = "."


def bind(association: Association, store: AssociationStore) -> None:
    """Have pynetdicom call us for what an association receives."""

    def on_store(event: Event) -> int:
        request = cast(C_STORE, event.request)
        return store.store(
            sop_class_uid=request.AffectedSOPClassUID,
            sop_instance_uid=request.AffectedSOPInstanceUID,
            transfer_syntax_uid=str(event.context.transfer_syntax),
            data_set=request.DataSet.getvalue() if request.DataSet is not None else b"",
        )

    _complete_commands(association)
    association.bind(evt.EVT_C_ECHO, lambda _event: SUCCESS)
    association.bind(evt.EVT_C_STORE, on_store)


def _complete_commands(association: Association) -> None:
    """Have ``_complete_command`` called first for what an association receives.

    pynetdicom's own logging comes before what is bound later, and where it fails on an odd command, nothing after it is
    called.
    """
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
