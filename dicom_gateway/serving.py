"""One connection from its first byte to its end: handshake, association, what it stores."""

from __future__ import annotations

import logging
import socket
import ssl
import struct
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, Final, Protocol

from pynetdicom import evt
from pynetdicom.ae import ApplicationEntity
from pynetdicom.association import Association
from pynetdicom.events import Event

from dicom_gateway import handlers
from dicom_gateway.association_store import AssociationStore
from dicom_gateway.commitment import STORAGE_COMMITMENT
from dicom_gateway.commitment_scp import Commitment
from dicom_gateway.entity import NEGOTIATION_SECONDS, SILENCE_SECONDS, UNFINISHED_SECONDS
from dicom_gateway.fast_store import FastStore, Patience
from dicom_gateway.peers import PeerRules, Rejection
from dicom_gateway.reception import Reception
from dicom_gateway.takeover import StoreAssociation, accept_association, agree_on_window, transfer_syntaxes
from dicom_gateway.tally import Tally
from dicom_gateway.tls import NOTHING_YET
from dicom_gateway.windowed_store import MOST_OUTSTANDING, WindowedStore
from flows_engine.handoff.run_request import Sender

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer

_log = logging.getLogger(__name__)

_TICK_SECONDS: Final = 1
"""After so long without a byte, a thread that waits for one looks whether it should go on."""
_SEND_SECONDS: Final = 30
_PROVIDER: Final = 3  # PS3.8 table 9-21: UL service-provider, presentation related function
_MOST_MESSAGE_BYTES: Final = 32 * 1024 * 1024
"""What a message may take in memory that is no object, such as a request for the storage commitment of 100,000."""
_LONGEST_REQUEST_BYTES: Final = 1024 * 1024
_PDU_HEADER: Final = struct.Struct(">BxL")
_FAREWELL_SECONDS: Final = 1.0
_PATIENCE: Final = Patience(between_messages_seconds=SILENCE_SECONDS, within_message_seconds=UNFINISHED_SECONDS)


class Receptions(Protocol):
    """Where what is received goes."""

    def open(self, *, sender: Sender, called_ae_title: str) -> Reception:
        """Return the place for the instances of one association that begins now."""
        ...

    def ended(self, reception_id: str, *, complete: bool) -> None:
        """Take note that nothing more will come into a reception."""
        ...


class Serving:
    """Serves connections, each in a thread of its own. Without ``is_fast``, pynetdicom receives the objects itself.

    With ``is_synced``, each instance is on the disk before it is answered; it pays then to see to several at once.
    """

    def __init__(
        self,
        entity: ApplicationEntity,
        receptions: Receptions,
        *,
        peers: PeerRules | None = None,
        tls: ssl.SSLContext | None = None,
        is_fast: bool = True,
        is_synced: bool = True,
        tally: Tally | None = None,
        commitment: Commitment | None = None,
    ) -> None:
        self._entity = entity
        self._peers = peers or PeerRules()
        self._contexts = list(entity.supported_contexts)
        self._receptions = receptions
        self._tls = tls
        if tls is not None:
            tls.sslsocket_class = _TlsConnection
        self._is_fast = is_fast
        self._is_synced = is_synced
        self._tally = tally or Tally()
        self._commitment = commitment
        self._lock = threading.Lock()
        self._open: dict[threading.Thread, _Connection] = {}
        self._stopping = False

    def serve(
        self,
        connection: socket.socket,
        *,
        is_secure: bool,
        on_end: Callable[[], object],
        rejection: Rejection | None = None,
    ) -> None:
        """Begin to serve a connection that was accepted; ``on_end`` is called once it is over, whatever happens.

        With a ``rejection``, its association is rejected.
        """
        served = _Connection(self, connection, is_secure=is_secure, rejection=rejection)

        def run() -> None:
            try:
                served.run()
            except Exception as error:  # noqa: BLE001  # outer edge of the thread; a trace may quote what was sent
                _log.error("a connection ended with %s", type(error).__name__, extra={"action": "association"})
            finally:
                with self._lock:
                    self._open.pop(threading.current_thread(), None)
                on_end()

        thread = threading.Thread(target=run, name="connection", daemon=True)
        with self._lock:
            self._open[thread] = served
        try:
            thread.start()
        except RuntimeError as error:  # there are as many threads as the system allows
            _log.error("a connection cannot be served: %s", error, extra={"action": "association"})
            with self._lock:
                self._open.pop(thread, None)
            connection.close()
            on_end()

    def stop(self, *, grace_seconds: float) -> None:
        """Let what is open go on for ``grace_seconds``, then end it. What it had stored is told before this returns."""
        deadline = time.monotonic() + grace_seconds
        while self._threads() and time.monotonic() < deadline:
            time.sleep(0.02)
        left = self._threads()
        for thread, served in left.items():
            threading.Thread(target=served.abort, name=f"abort-{thread.name}", daemon=True).start()
        deadline = time.monotonic() + _FAREWELL_SECONDS
        for thread in left:
            thread.join(timeout=max(0.0, deadline - time.monotonic()))
        for served in self._threads().values():
            served.cut()
        for thread in left:
            thread.join(timeout=_FAREWELL_SECONDS)

    def _threads(self) -> dict[threading.Thread, _Connection]:
        with self._lock:
            return dict(self._open)


class _Connection:
    """One connection."""

    def __init__(
        self, serving: Serving, connection: socket.socket, *, is_secure: bool, rejection: Rejection | None
    ) -> None:
        self._rejection = rejection
        self._serving = serving
        self._connection = connection
        self._is_secure = is_secure
        self._association: StoreAssociation | None = None
        self._window = 1

    def run(self) -> None:
        """Serve it to its end."""
        try:
            _set_up(self._connection)
            if self._is_secure and not self._shake_hands():
                self._serving._tally.refused("handshake")
                return
            request = self._request()
            if request is not None:
                self._serve(request)
            else:
                self._serving._tally.refused("no-request")
        finally:
            with suppress(OSError):
                self._connection.shutdown(socket.SHUT_RDWR)
            self._connection.close()

    def abort(self) -> None:
        """Have the association aborted."""
        if self._association is not None and self._association.is_alive():
            self._association.abort()
        else:
            self.cut()

    def cut(self) -> None:
        """End the connection."""
        with suppress(OSError):
            self._connection.shutdown(socket.SHUT_RDWR)

    def _shake_hands(self) -> bool:
        assert self._serving._tls is not None
        try:
            self._connection.settimeout(NEGOTIATION_SECONDS)
            self._connection = self._serving._tls.wrap_socket(self._connection, server_side=True)
            self._connection.settimeout(_TICK_SECONDS)
        except OSError as error:
            reason = getattr(error, "reason", None) or error.strerror or type(error).__name__
            _log.warning("a TLS handshake failed: %s", reason, extra={"action": "reject"})
            return False
        return True

    def _request(self) -> bytes | None:
        """Return the first PDU, before anything is made for it; None where none comes, or it is too long."""
        deadline = time.monotonic() + NEGOTIATION_SECONDS
        received, wanted = b"", _PDU_HEADER.size
        while len(received) < wanted:
            try:
                more = self._connection.recv(min(wanted - len(received), 65536))
            except NOTHING_YET:
                more = None
            except OSError:
                return None
            if more == b"" or time.monotonic() > deadline:
                return None
            received += more or b""
            if len(received) == _PDU_HEADER.size:
                wanted += _PDU_HEADER.unpack(received)[1]
                if wanted > _LONGEST_REQUEST_BYTES:
                    _log.warning("a first PDU of %d bytes was refused", wanted, extra={"action": "reject"})
                    return None
        return received

    def _serve(self, request: bytes) -> None:
        serving = self._serving
        try:
            association = accept_association(
                serving._entity,
                connection=self._connection,
                received=request,
                contexts=serving._contexts,
                pdu_seconds=UNFINISHED_SECONDS,
                most_message_bytes=_MOST_MESSAGE_BYTES if serving._is_fast else None,
            )
        except OSError:
            return  # the peer is gone already
        opened: list[Reception] = []

        def open_reception() -> Reception:
            reception = serving._receptions.open(sender=_sender(association), called_ae_title=_called(association))
            opened.append(reception)
            return reception

        store = AssociationStore(open_reception, stored_whole=serving._tally.answered)
        handlers.bind(association, store)
        association.bind(evt.EVT_REQUESTED, self._on_requested)
        commitment = serving._commitment.on(association, lambda: _sender(association)) if serving._commitment else None
        association.take(
            make_path=lambda _: self._path(association, store),
            before_release=store.seal,
            is_more_due=lambda: commitment is not None and commitment.is_waiting,
            after_request=commitment.answer if commitment else lambda: None,
        )
        self._association = association
        association.start()
        association.join()
        store.close()
        if commitment is not None:
            commitment.close()
        if association.is_rejected:
            serving._tally.refused("negotiation")
        for reception in opened:
            serving._receptions.ended(reception.id, complete=association.is_released)

    def _on_requested(self, event: Event) -> None:
        """Reject an association that may not be, before it is negotiated."""
        association = event.assoc
        sender = _sender(association)
        rejection = self._rejection or self._serving._peers.rejection(
            calling_ae_title=sender.ae_title, called_ae_title=_called(association), address=sender.host
        )
        if rejection is not None:
            _log.warning(
                "an association from %s was rejected: %s", sender.host, rejection.reason, extra={"action": "reject"}
            )
            self._serving._tally.refused("busy" if rejection.source == _PROVIDER else "peer")
            association.acse.send_reject(rejection.result, rejection.source, rejection.diagnostic)
            # Returns once that was sent, and the connection is closed.
            association.kill()
        elif self._serving._is_fast and not _proposes(association, STORAGE_COMMITMENT):
            self._window = agree_on_window(association, most=MOST_OUTSTANDING)

    def _path(self, association: StoreAssociation, store: AssociationStore) -> FastStore | None:
        store.transfer_syntaxes = transfer_syntaxes(association)
        self._serving._tally.accepted()
        if not self._serving._is_fast:
            return None
        make: Callable[..., FastStore] = FastStore
        if self._window > 1 and self._serving._is_synced:
            make = partial(WindowedStore, window=self._window)
        return make(
            self._connection,
            contexts=store.transfer_syntaxes,
            begin=store.begin,
            is_ended=lambda: association.is_over,
            patience=_PATIENCE,
            answered=self._serving._tally.answered,
        )


class _TlsConnection(ssl.SSLSocket):
    """Has Python's time-outs: Python begins an operation of TLS again by itself that the kernel's have ended.

    There is one for both directions. A connection is used by one thread at a time.
    """

    def send(self, data: ReadableBuffer, flags: int = 0) -> int:
        self.settimeout(_SEND_SECONDS)
        try:
            return super().send(data, flags)
        finally:
            self.settimeout(_TICK_SECONDS)


def _set_up(connection: socket.socket) -> None:
    connection.setblocking(True)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    # The kernel's time-outs: with Python's own, each receive would be two system calls.
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, struct.pack("ll", _TICK_SECONDS, 0))
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, struct.pack("ll", _SEND_SECONDS, 0))


def _sender(association: Association) -> Sender:
    """Return who sends, also before pynetdicom has taken its AE title out of the request."""
    requestor = association.requestor
    address = requestor.address_info
    primitive = requestor.primitive
    return Sender(
        ae_title=((primitive.calling_ae_title if primitive is not None else "") or "").strip(),
        host=address.address if address is not None else "",
        port=address.port if address is not None else 0,
    )


def _proposes(association: Association, abstract_syntax: str) -> bool:
    return any(context.abstract_syntax == abstract_syntax for context in association.requestor.requested_contexts)


def _called(association: Association) -> str:
    primitive = association.requestor.primitive
    return ((primitive.called_ae_title if primitive is not None else "") or "").strip()
