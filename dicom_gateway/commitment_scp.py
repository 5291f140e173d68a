"""Storage commitment on the association on which it is asked for (PS3.4 J.3.2, J.3.3).

A request is on disk before it is accepted. The report follows on the same association, while that lasts; where it does
not reach the peer, the request is left for the gateway, which has more time (``commitment_reports``).
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from io import BytesIO
from typing import Final, cast

from pydicom.dataset import Dataset
from pynetdicom import evt
from pynetdicom.dimse_primitives import N_ACTION, N_EVENT_REPORT
from pynetdicom.dsutils import encode
from pynetdicom.events import Event

from dicom_gateway.commitment import (
    REQUEST_COMMITMENT,
    STORAGE_COMMITMENT,
    THE_INSTANCE,
    CommitmentRequest,
    NoCommitmentRequestError,
    read_action,
    report_on,
)
from dicom_gateway.commitment_folder import CommitmentFolder, KeptRequest, TooManyError
from dicom_gateway.committed_instances import CommittedInstances, Look
from dicom_gateway.takeover import StoreAssociation
from flows_engine.handoff.run_request import Sender

_log = logging.getLogger(__name__)
_ACTION: Final = {"action": "commitment"}

_SUCCESS: Final = 0x0000
_NO_SUCH_SOP_INSTANCE: Final = 0x0112
_INVALID_ARGUMENT: Final = 0x0115
_NO_SUCH_ACTION: Final = 0x0123
_RESOURCE_LIMITATION: Final = 0x0213

_PAUSE_FOR_A_RELEASE_SECONDS: Final = 0.1
"""A peer that does not wait for the report on this association releases it at once."""
_LONGEST_WAIT_SECONDS: Final = 30.0
"""So long an instance may be on its way from the spool to the store."""
_LOOK_AGAIN_SECONDS: Final = 0.25
_RESPONSE_SECONDS: Final = 30.0


class Commitment:
    """Answers requests for storage commitment in one process."""

    def __init__(self, folder: CommitmentFolder, instances: CommittedInstances) -> None:
        self._folder = folder
        self._instances = instances

    def on(self, association: StoreAssociation, requester: Callable[[], Sender]) -> AssociationCommitment:
        """Answer those of one association, which is not started yet, so that who it is with is asked for later."""
        return AssociationCommitment(self._folder, self._instances, association, requester)


class AssociationCommitment:
    """The requests of one association, in the thread of which all of this is called."""

    def __init__(
        self,
        folder: CommitmentFolder,
        instances: CommittedInstances,
        association: StoreAssociation,
        requester: Callable[[], Sender],
    ) -> None:
        self._folder = folder
        self._instances = instances
        self._association = association
        self._requester = requester
        self._waiting: list[KeptRequest] = []
        self._message_id = 0
        association.bind(evt.EVT_N_ACTION, self._on_action)

    @property
    def is_waiting(self) -> bool:
        """Whether anything was asked for that is not reported on."""
        return bool(self._waiting)

    def answer(self) -> None:
        """Report on what was asked for, as far as the peer is still there to listen."""
        while self._waiting and not self._association.is_leaving:
            kept = self._waiting.pop(0)
            try:
                if self._report(kept.request):
                    kept.done()
            except Exception as error:  # noqa: BLE001  # the request stays, and the gateway takes it up
                _log.error("a report on storage commitment failed with %s", type(error).__name__, extra=_ACTION)
            kept.let_go()

    def close(self) -> None:
        """Leave what was not reported to the gateway."""
        for kept in self._waiting:
            kept.let_go()

    def _on_action(self, event: Event) -> tuple[int, Dataset | None]:
        action = cast(N_ACTION, event.request)
        if action.RequestedSOPInstanceUID != THE_INSTANCE:
            return _NO_SUCH_SOP_INSTANCE, None
        if action.ActionTypeID != REQUEST_COMMITMENT:
            return _NO_SUCH_ACTION, None
        try:
            transaction_uid, references = read_action(event.action_information)
        except NoCommitmentRequestError as error:
            _log.warning("a request for storage commitment was refused: %s", error, extra=_ACTION)
            return _INVALID_ARGUMENT, None
        except Exception as error:  # noqa: BLE001  # whatever pydicom makes of a hostile data set
            _log.warning("a request for storage commitment cannot be read: %s", type(error).__name__, extra=_ACTION)
            return _INVALID_ARGUMENT, None
        request = CommitmentRequest(
            transaction_uid=transaction_uid, requester=self._requester(), asked_at=time.time(), references=references
        )
        try:
            self._waiting.append(self._folder.keep(request))
        except (OSError, TooManyError) as error:
            reason = error.strerror if isinstance(error, OSError) else error
            _log.error("a request for storage commitment cannot be kept: %s", reason, extra=_ACTION)
            return _RESOURCE_LIMITATION, None
        return _SUCCESS, None

    def _report(self, request: CommitmentRequest) -> bool:
        """Report on a request; return whether the peer has confirmed it."""
        look = self._settled_look(request)
        if look is None:
            return False
        event_type, information = report_on(request, look.failures)
        context = next(
            context for context in self._association.accepted_contexts if context.abstract_syntax == STORAGE_COMMITMENT
        )
        syntax = context.transfer_syntax[0]
        encoded = encode(information, syntax.is_implicit_VR, syntax.is_little_endian, syntax.is_deflated)
        self._message_id = self._message_id % 0xFFFF + 1
        event = N_EVENT_REPORT()
        event.MessageID = self._message_id
        event.AffectedSOPClassUID = STORAGE_COMMITMENT
        event.AffectedSOPInstanceUID = THE_INSTANCE
        event.EventTypeID = event_type
        event.EventInformation = BytesIO(encoded or b"")
        response = self._association.ask(event, context_id=context.context_id or 0, timeout_seconds=_RESPONSE_SECONDS)
        if response is None or response.Status != _SUCCESS:
            return False
        _log.info(
            "storage commitment was reported; instances: %d, of which not committed: %d",
            len(request.references),
            len(look.failures),
            extra=_ACTION,
        )
        return True

    def _settled_look(self, request: CommitmentRequest) -> Look | None:
        """Return what is found once nothing that is missing can be on its way; None where the peer leaves before."""
        began = time.monotonic()
        while True:
            look = self._instances.look(request.references)
            is_settled = not look.may_change or time.monotonic() > began + _LONGEST_WAIT_SECONDS
            pause = 0.0 if is_settled else _LOOK_AGAIN_SECONDS
            until = max(began + _PAUSE_FOR_A_RELEASE_SECONDS, time.monotonic() + pause)
            while time.monotonic() < until:
                if self._association.is_leaving:
                    return None
                time.sleep(0.005)
            if self._association.is_leaving:
                return None
            if is_settled:
                return look
