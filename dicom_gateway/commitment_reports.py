"""Reports on storage commitment whose association has ended: over associations of our own, to peers that are known.

What is to be reported lies in ``DATA_DIR/commitments`` until a peer has confirmed it, or has had its chances.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Mapping
from typing import Final

from pydicom.dataset import Dataset
from pynetdicom import AE, build_role

from dicom_gateway.commitment import STORAGE_COMMITMENT, THE_INSTANCE, CommitmentRequest, report_on
from dicom_gateway.commitment_folder import CommitmentFolder, KeptRequest
from dicom_gateway.committed_instances import CommittedInstances

_log = logging.getLogger(__name__)
_ACTION: Final = {"action": "commitment"}

_LOOK_SECONDS: Final = 1.0
_LOOK_AGAIN_SECONDS: Final = 5.0
_PEER_SECONDS: Final = 30.0
_END_SECONDS: Final = 3.0
_LONGEST_WAIT_SECONDS: Final = 600.0
"""So long after it was asked for, an instance may be on its way from the spool to the store, or to the index."""
RETRY_DELAYS_SECONDS: Final = (5.0, 30.0, 120.0, 600.0, 1800.0, 3600.0, 3600.0, 3600.0)


class CommitmentReports:
    """A thread that reports. ``peers`` are addresses, as ``host:port``, by AE title."""

    def __init__(
        self,
        folder: CommitmentFolder,
        instances: CommittedInstances,
        *,
        ae_title: str,
        peers: Mapping[str, str],
        retry_delays_seconds: tuple[float, ...] = RETRY_DELAYS_SECONDS,
    ) -> None:
        self._folder = folder
        self._instances = instances
        self._ae_title = ae_title
        self._peers = peers
        self._retry_delays_seconds = retry_delays_seconds
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="commitment", daemon=True)

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    def stop(self) -> None:
        """Stop. What was not reported is reported after the next start."""
        self._stopping.set()
        if self._thread.ident is not None:
            self._thread.join(timeout=_END_SECONDS)

    def _run(self) -> None:
        while not self._stopping.wait(_LOOK_SECONDS):
            try:
                for kept in self._folder.abandoned():
                    try:
                        self._serve(kept)
                    finally:
                        kept.let_go()
                    if self._stopping.is_set():
                        return
            except Exception as error:  # noqa: BLE001  # outer edge of the thread: what is kept is looked at again
                _log.error("storage commitment cannot be reported: %s", type(error).__name__, extra=_ACTION)

    def _serve(self, kept: KeptRequest) -> None:
        request, now = kept.request, time.time()
        address = self._peers.get(request.requester.ae_title)
        if address is None:
            _log.warning(
                "a report on storage commitment is dropped: its association has ended, and COMMITMENT_PEERS does not "
                "say where its peer listens",
                extra=_ACTION,
            )
            kept.done()
            return
        # A clock that was set back since must not make it wait longer than any pause.
        if now < request.next_attempt_at <= now + max(self._retry_delays_seconds):
            return
        look = self._instances.look(request.references)
        if look.may_change and now < request.asked_at + _LONGEST_WAIT_SECONDS:
            kept.postpone(request.model_copy(update={"next_attempt_at": now + _LOOK_AGAIN_SECONDS}))
            return
        event_type, information = report_on(request, look.failures)
        try:
            reason = self._send(request, address, event_type, information)
        except (OSError, RuntimeError) as error:
            reason = f"the peer cannot be reached ({type(error).__name__})"
        if not reason:
            _log.info(
                "storage commitment was reported; instances: %d, of which not committed: %d",
                len(request.references),
                len(look.failures),
                extra=_ACTION,
            )
            kept.done()
        elif request.attempts < len(self._retry_delays_seconds):
            delay = self._retry_delays_seconds[request.attempts]
            _log.warning("storage commitment was not reported: %s; again in %g s", reason, delay, extra=_ACTION)
            kept.postpone(request.model_copy(update={"attempts": request.attempts + 1, "next_attempt_at": now + delay}))
        else:
            _log.error("storage commitment was not reported: %s; given up", reason, extra=_ACTION)
            kept.done()

    def _send(self, request: CommitmentRequest, address: str, event_type: int, information: Dataset) -> str:
        """Send a report; return why it was not confirmed, or nothing."""
        host, _, port = address.rpartition(":")
        entity = AE(ae_title=self._ae_title)
        entity.acse_timeout = entity.dimse_timeout = entity.network_timeout = _PEER_SECONDS
        entity.connection_timeout = _PEER_SECONDS
        entity.add_requested_context(STORAGE_COMMITMENT)
        association = entity.associate(
            host.strip("[]"),
            int(port),
            ae_title=request.requester.ae_title,
            # We began the association, and are its SCP all the same (PS3.4 J.3.3.1).
            ext_neg=[build_role(STORAGE_COMMITMENT, scp_role=True)],
        )
        if not association.is_established:
            return "the peer rejected the association" if association.is_rejected else "the peer does not answer"
        try:
            status, _ = association.send_n_event_report(information, event_type, STORAGE_COMMITMENT, THE_INSTANCE)
        except ValueError:
            return "the peer does not take reports on storage commitment"
        finally:
            association.release()
        code = status.get("Status")
        return "" if code == 0 else "the peer did not confirm it" if code is None else f"the peer said 0x{code:04X}"
