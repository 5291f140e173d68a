"""A storage SCU that sends what it is told, well-formed or not, over pynetdicom's own association."""

from __future__ import annotations

import socket
import ssl
import struct
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from io import BytesIO

from pydicom.dataset import Dataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian
from pynetdicom import AE, _config
from pynetdicom.association import Association
from pynetdicom.dimse_primitives import C_ECHO, C_STORE
from pynetdicom.pdu_primitives import AsynchronousOperationsWindowNegotiation

from tests.fakes.instances import encoded

VERIFICATION = "1.2.840.10008.1.1"

# This sender keeps to no rule.
_config.VALIDATORS["UI"] = lambda _: (True, "")


@contextmanager
def association(
    port: int,
    *,
    contexts: Iterable[tuple[str, str]] = ((CTImageStorage, ExplicitVRLittleEndian),),
    window: tuple[int, int] | None = None,
    tls: ssl.SSLContext | None = None,
) -> Iterator[Association]:
    """Open an association that is released at the end, or aborted where an error leaves the block.

    ``window`` is what it proposes: the most operations to invoke and to perform at once.
    """
    entity = AE(ae_title="HOSTILE")
    for abstract_syntax, transfer_syntax in contexts:
        entity.add_requested_context(abstract_syntax, transfer_syntax)
    opened = entity.associate(
        "127.0.0.1",
        port,
        ext_neg=[_window(*window)] if window is not None else [],
        tls_args=(tls, "server") if tls is not None else None,
    )
    assert opened.is_established
    try:
        yield opened
    except BaseException:
        opened.abort()
        raise
    if opened.is_established:
        opened.release()


def send(
    opened: Association,
    dataset: Dataset | bytes,
    *,
    sop_instance_uid: str | None = None,
    sop_class_uid: str = CTImageStorage,
    transfer_syntax_uid: str = ExplicitVRLittleEndian,
) -> int:
    """Send one C-STORE as it is and return the status. ``sop_instance_uid`` is the command's."""
    request = store_request(
        dataset,
        1,
        sop_instance_uid=sop_instance_uid,
        sop_class_uid=sop_class_uid,
        transfer_syntax_uid=transfer_syntax_uid,
    )
    ((_, status),) = exchange(opened, [request], transfer_syntax_uid=transfer_syntax_uid)
    return status


def store_request(
    dataset: Dataset | bytes,
    message_id: int,
    *,
    sop_instance_uid: str | None = None,
    sop_class_uid: str = CTImageStorage,
    transfer_syntax_uid: str = ExplicitVRLittleEndian,
) -> C_STORE:
    """Return a C-STORE of an instance. ``sop_instance_uid`` is the command's."""
    content = dataset if isinstance(dataset, bytes) else encoded(dataset, transfer_syntax_uid=transfer_syntax_uid)
    request = C_STORE()
    request.MessageID = message_id
    request.Priority = 2
    request.AffectedSOPClassUID = sop_class_uid
    request.AffectedSOPInstanceUID = dataset.SOPInstanceUID if sop_instance_uid is None else sop_instance_uid
    request.DataSet = BytesIO(content)
    return request


def exchange(
    opened: Association,
    requests: Sequence[C_STORE | C_ECHO],
    *,
    transfer_syntax_uid: str = ExplicitVRLittleEndian,
) -> list[tuple[int, int]]:
    """Send requests, all of them before the first answer; return the Message IDs and statuses that are answered."""
    contexts = {
        context.abstract_syntax: context.context_id
        for context in opened.accepted_contexts
        if context.transfer_syntax[0] == transfer_syntax_uid
    }
    # pynetdicom's reactor would take the answers; send_c_store pauses it in the same way.
    opened._reactor_checkpoint.clear()
    while not opened._is_paused:
        time.sleep(0.001)
    try:
        for request in requests:
            opened.dimse.send_msg(request, contexts[request.AffectedSOPClassUID])
        answers = [opened.dimse.get_msg(block=True)[1] for _ in requests]
    finally:
        opened._reactor_checkpoint.set()
    assert None not in answers, "the association ended instead of an answer"
    return [(answer.MessageIDBeingRespondedTo, int(answer.Status)) for answer in answers]


def _window(invoked: int, performed: int) -> AsynchronousOperationsWindowNegotiation:
    item = AsynchronousOperationsWindowNegotiation()
    item.maximum_number_operations_invoked, item.maximum_number_operations_performed = invoked, performed
    return item


def fall_silent_inside_an_object(opened: Association) -> socket.socket:
    """Begin a P-DATA PDU of 100,000 bytes, send 500 of them, and return the connection."""
    connection = opened.dul.socket.socket
    context_id = opened.accepted_contexts[0].context_id
    connection.sendall(struct.pack(">BBLLBB", 0x04, 0, 100_000, 99_996, context_id, 0x00) + b"\0" * 500)
    return connection


def die_inside_an_object(opened: Association) -> None:
    """Begin an object, and reset the connection."""
    connection = fall_silent_inside_an_object(opened)
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    connection.close()
