"""pynetdicom's association, with the C-STORE path taken out of its hands: ``fast_store`` reads the socket, until
something comes that is none.

All that is used of pynetdicom beside its documented interface is used here, and was written down from the release that
``pyproject.toml`` pins. A new release is tried against ``tests/unit/gateway/test_takeover.py`` first.

pynetdicom runs two threads an association: one reads PDUs and drives the state machine of PS3.8 9.2 (the DUL), one
serves messages. Both poll a thousand times a second. Here the DUL thread is held while the other one waits in ``recv``,
so that an association on which nothing happens costs nothing.
"""

from __future__ import annotations

import select
import socket
import threading
import time
from collections.abc import Callable
from datetime import UTC, datetime
from ssl import SSLSocket
from typing import Final, Protocol

from pynetdicom._globals import MODE_ACCEPTOR
from pynetdicom.ae import ApplicationEntity
from pynetdicom.association import Association
from pynetdicom.dimse_primitives import N_EVENT_REPORT
from pynetdicom.pdu_primitives import A_RELEASE, AsynchronousOperationsWindowNegotiation
from pynetdicom.presentation import PresentationContext
from pynetdicom.transport import AddressInformation, AssociationSocket

from dicom_gateway.fast_store import Ending
from dicom_gateway.tls import NOTHING_YET

_STEP_SECONDS: Final = 0.001
_LOOK_SECONDS: Final = 1.0
_SMALLEST_CAP_BYTES: Final = 1024 * 1024
"""How long a PDU may be that pynetdicom reads, and so keeps in memory: an A-ASSOCIATE-RQ may list many syntaxes."""


class StorePath(Protocol):
    """What an association needs of ``fast_store.FastStore``."""

    def serve(self, received: bytes, /) -> tuple[Ending, bytes]:
        """Serve C-STOREs until something else comes."""
        ...


class HeldSocket(AssociationSocket):
    """The socket of an association, from which the DUL thread reads only when it is let.

    ``received`` was read of it before, and comes first.
    """

    def __init__(
        self,
        association: Association,
        *,
        connection: socket.socket,
        received: bytes,
        pdu_seconds: float,
        most_message_bytes: int | None,
    ) -> None:
        super().__init__(association, client_socket=connection)
        self._most_message_bytes = most_message_bytes
        self._message_bytes = 0
        self._received = received
        self._pdu_seconds = pdu_seconds
        # The two threads take turns. Each letting go begins another turn, and what was said of an earlier one counts no
        # more: neither thread can miss what the other did while it was not running.
        self._turns = threading.Condition()
        self._turn = 0
        self._held_in_turn = -1
        self._is_wanted = False
        self._may_read = True
        self._is_cut = False

    def cut(self) -> None:
        """Have the DUL thread find the connection at its end, whatever there is still to be read.

        Only while it is held. Where a PDU was not read to its end, what follows would be taken for another one.
        """
        self._received, self._is_cut = b"", True

    def hold(self) -> None:
        """Ask the DUL thread to stop before it reads again. It does so once it has nothing else to do."""
        with self._turns:
            self._is_wanted = True

    def is_held(self, *, timeout_seconds: float) -> bool:
        """Wait for the DUL thread to stop, and tell whether it has."""
        with self._turns:
            return self._turns.wait_for(lambda: self._held_in_turn == self._turn, timeout_seconds)

    def let(self, received: bytes = b"") -> None:
        """Let the DUL thread go on, with ``received`` as the first that it reads."""
        self._begin_turn(received, is_wanted=False, may_read=True)

    def let_read(self, received: bytes = b"") -> None:
        """Let it read one PDU, if there is one, and do all that follows from that; it is held again then.

        Only while it is held. A peer that sends without a pause would have it read on and on otherwise.
        """
        self._begin_turn(received, is_wanted=True, may_read=True)

    def let_send(self) -> None:
        """Let it send what there is to send, and read nothing; it is held again then."""
        self._begin_turn(b"", is_wanted=True, may_read=False)

    def _begin_turn(self, received: bytes, *, is_wanted: bool, may_read: bool) -> None:
        with self._turns:
            self._received += received
            self._is_wanted, self._may_read = is_wanted, may_read
            self._turn += 1
            self._turns.notify_all()

    def taken(self) -> bytes:
        """Take what the DUL thread has left of ``received``. Only while it is held."""
        self._message_bytes = 0
        taken, self._received = self._received, b""
        return taken

    def wait(self, timeout_seconds: float) -> bool:
        """Wait for something to read, and tell whether there is. Only while the DUL thread is held."""
        try:
            return self.socket is None or bool(self._received) or self._has_more(timeout_seconds)
        except (OSError, ValueError):
            return True  # the DUL thread will find out how it ended

    @property
    def ready(self) -> bool:
        """Tell the DUL thread whether there is something to read; it stops here while it is held."""
        with self._turns:
            if self._is_wanted:
                turn = self._held_in_turn = self._turn
                self._turns.notify_all()
                self._turns.wait_for(lambda: self._turn != turn)
                if not self._may_read:
                    return False
        if self.socket is None or not self._is_connected:
            return False
        try:
            return bool(self._received) or self._has_more(0)
        except (OSError, ValueError):
            self.event_queue.put("Evt17")  # PS3.8 table 9-10: the transport connection is closed
            return False

    def _has_more(self, timeout_seconds: float) -> bool:
        connection = self.socket
        assert connection is not None
        if self._is_cut:
            return True
        if isinstance(connection, SSLSocket) and connection.pending():
            return True
        # select.select, which pynetdicom uses, cannot take the descriptors of a busy process (above 1023).
        waiting = select.poll()
        waiting.register(connection, select.POLLIN)
        return bool(waiting.poll(timeout_seconds * 1000))

    def recv(self, nr_bytes: int) -> bytearray:
        """Return ``nr_bytes``, or fewer where the connection ends before, or was cut.

        Raises ``OSError`` where they do not come in time, or are more than anyone needs to send.
        """
        if nr_bytes > max(_SMALLEST_CAP_BYTES, self.assoc.acceptor.maximum_length or 0):
            raise OSError("the PDU is longer than any that was agreed on")
        self._message_bytes += nr_bytes
        if self._most_message_bytes is not None and self._message_bytes > self._most_message_bytes:
            raise OSError("the message is longer than any that is served")
        taken = bytearray(self._received[:nr_bytes])
        self._received = self._received[nr_bytes:]
        deadline = time.monotonic() + self._pdu_seconds
        while len(taken) < nr_bytes and self.socket is not None and not self._is_cut:
            try:
                more = self.socket.recv(nr_bytes - len(taken))
            except NOTHING_YET:
                more = None
            if more == b"":
                break
            taken += more or b""
            if time.monotonic() > deadline:
                raise TimeoutError("the rest of a PDU did not come in time")
        return taken


class StoreAssociation(Association):
    """An acceptor's association whose C-STOREs take the path that ``take`` is given, before it is started."""

    _path: StorePath | None = None
    _before_release: Callable[[], bool]
    _make_path: Callable[[Association], StorePath | None]
    _is_more_due: Callable[[], bool]
    _after_request: Callable[[], None]

    def take(
        self,
        *,
        make_path: Callable[[Association], StorePath | None],
        before_release: Callable[[], bool],
        is_more_due: Callable[[], bool] = lambda: False,
        after_request: Callable[[], None] = lambda: None,
    ) -> None:
        """Set what serves the C-STOREs once the association is established; without a path, pynetdicom does.

        ``before_release`` is called before a release is answered; where it is False, the association is aborted.
        ``after_request`` is called after the response to anything that is no C-STORE, if ``is_more_due`` then, and may
        ``ask``. What comes meanwhile is pynetdicom's.
        """
        self._make_path = make_path
        self._before_release = before_release
        self._is_more_due = is_more_due
        self._after_request = after_request

    @property
    def is_leaving(self) -> bool:
        """Whether the peer has begun to release or to abort the association, or it is over."""
        return self.is_over or not self.dul.is_alive() or self.dul.peek_next_pdu() is not None

    def ask(self, request: N_EVENT_REPORT, *, context_id: int, timeout_seconds: float) -> N_EVENT_REPORT | None:
        """Send a request to the peer, and return its response; None where it does not come.

        Only from ``after_request``. What else comes meanwhile is served.
        """
        self.dimse.send_msg(request, context_id)
        deadline = time.monotonic() + timeout_seconds
        while True:
            came_in, message = self.dimse.get_msg(block=False)
            if message is None:
                if self.is_leaving or time.monotonic() > deadline:
                    return None
                time.sleep(_STEP_SECONDS)
            elif isinstance(message, N_EVENT_REPORT) and message.MessageIDBeingRespondedTo == request.MessageID:
                return message
            else:
                self._serve_request(message, came_in or 0)

    @property
    def is_over(self) -> bool:
        """Whether the association is ending, or has."""
        return bool(self._kill or self._sent_abort)

    def abort(self, block: bool = True) -> None:
        """Abort; may be called from any thread."""
        transport = self.dul.socket
        if isinstance(transport, HeldSocket):
            transport.let()
        super().abort(block)

    def _run_reactor(self) -> None:
        """Serve the association until it ends; pynetdicom's own loop serves its last messages."""
        transport = self.dul.socket
        assert isinstance(transport, HeldSocket)
        try:
            self._serve_to_the_end(transport)
        finally:
            # Whatever went wrong, the other thread is not to wait for this one.
            transport.let()

    def _serve_to_the_end(self, transport: HeldSocket) -> None:
        path = self._make_path(self)
        while self._serve_all_but_stores(transport):
            ending = Ending.OTHER
            if path is None:
                self._wait_for_more(transport)
                transport.let()
            else:
                ending, received = path.serve(transport.taken())
                self.dul._idle_timer.restart()
                if ending is Ending.CLOSED and not self.is_over:
                    transport.cut()
                transport.let_read(received)
            if ending in (Ending.SILENT, Ending.INVALID):
                self._give_up(transport)
                return
        if isinstance(self.dul.peek_next_pdu(), A_RELEASE) and not self._before_release():
            self.abort()
            self.kill()
            return
        super()._run_reactor()

    def _serve_all_but_stores(self, transport: HeldSocket) -> bool:
        """Have pynetdicom serve what has come, until the DUL thread waits, and is held.

        Returns False where the association is about to end, and the DUL thread goes on.
        """
        transport.hold()
        while True:
            context_id, message = self.dimse.get_msg(block=False)
            if message is not None:
                self._serve_request(message, context_id or 0)
                if self._is_more_due():
                    transport.let()
                    self._after_request()
                    transport.hold()
                else:
                    transport.let_send()
                continue
            if self._kill or not self.dul.is_alive() or self.dul.peek_next_pdu() is not None:
                transport.let()
                return False
            if not transport.is_held(timeout_seconds=_STEP_SECONDS):
                continue
            if self._is_quiet():
                if self.dimse.message is None:
                    return True
                # The rest of a message is to come.
                transport.wait(_LOOK_SECONDS)
                if self.dul.idle_timer_expired():
                    self._give_up(transport)
                    return False
                transport.let_read()
            elif self.dimse.msg_queue.empty():
                # Something came between its last look and its stop.
                transport.let_read()

    def _give_up(self, transport: HeldSocket) -> None:
        transport.let()
        self.abort()
        self.kill()

    def _is_quiet(self) -> bool:
        """Whether pynetdicom has nothing to do but to wait. Only while the DUL thread is held."""
        dul = self.dul
        queues = (dul.event_queue, dul.to_provider_queue, dul.to_user_queue, dul._recv_pdu, self.dimse.msg_queue)
        return all(queue.empty() for queue in queues)

    def _wait_for_more(self, transport: HeldSocket) -> None:
        """Wait until pynetdicom has something to read, or to end. Only while the DUL thread is held."""
        while not self._kill and not transport.wait(_LOOK_SECONDS):
            if self.dul.idle_timer_expired():
                return


def accept_association(
    entity: ApplicationEntity,
    *,
    connection: socket.socket,
    received: bytes,
    contexts: list[PresentationContext],
    pdu_seconds: float,
    most_message_bytes: int | None,
) -> StoreAssociation:
    """Return an association for a connection that was accepted, of which ``received`` was read; it is not started.

    ``contexts`` are those that the entity supports. They are shared, not copied, by all associations, which only read
    them: to copy all the syntaxes of all classes took longer than to receive a dozen images. ``most_message_bytes`` is
    what pynetdicom may keep in memory of a message; None where it receives objects, too.
    """
    association = StoreAssociation(entity, MODE_ACCEPTOR)
    association.name = f"association-{datetime.now(UTC):%H%M%S.%f}"
    association.set_socket(
        HeldSocket(
            association,
            connection=connection,
            received=received,
            pdu_seconds=pdu_seconds,
            most_message_bytes=most_message_bytes,
        )
    )
    acceptor = association.acceptor
    acceptor.maximum_length = entity.maximum_pdu_size
    acceptor.ae_title = entity.ae_title
    acceptor.address_info = AddressInformation.from_tuple(connection.getsockname())
    acceptor.implementation_class_uid = entity.implementation_class_uid
    acceptor.implementation_version_name = entity.implementation_version_name
    acceptor.supported_contexts = contexts
    association.requestor.address_info = AddressInformation.from_tuple(connection.getpeername())
    return association


def agree_on_window(association: Association, *, most: int) -> int:
    """Return how many operations at once the requestor may invoke, and have it told, where it proposes several.

    Called once it has asked, and nothing is negotiated yet (``EVT_REQUESTED``). pynetdicom's own event for this
    answers one, whatever a handler returns; where nobody handles it, it leaves the answer to us. We invoke no more
    than one operation at a time, so that this is what the requestor may be asked to perform (PS3.7 D.3.3.3).
    """
    proposed, _ = association.requestor.asynchronous_operations
    if proposed == 1:
        return 1
    agreed = min(proposed or most, most)
    item = AsynchronousOperationsWindowNegotiation()
    item.maximum_number_operations_invoked = agreed
    item.maximum_number_operations_performed = 1
    association.acceptor.add_negotiation_item(item)
    return agreed


def transfer_syntaxes(association: Association) -> dict[int, str]:
    """Return the transfer syntax of each accepted presentation context, by its id."""
    return {number: str(context.transfer_syntax[0]) for number, context in association._accepted_cx.items()}
