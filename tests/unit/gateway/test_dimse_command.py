from __future__ import annotations

from io import BytesIO

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydicom.uid import CTImageStorage
from pynetdicom.dimse_messages import C_ECHO_RQ, C_STORE_RQ, C_STORE_RSP
from pynetdicom.dimse_primitives import C_ECHO, C_STORE
from pynetdicom.pdu import P_DATA_TF
from pynetdicom.pdu_primitives import P_DATA

from dicom_gateway.dimse_command import StoreRequest, store_request, store_response


def command_of(message, primitive):
    """Return a command set as pynetdicom encodes it."""
    message.primitive_to_message(primitive)
    return message.encode_msg(1, 16382).__next__().presentation_data_value_list[0][1][1:]


def a_store(*, data_set=b"x"):
    primitive = C_STORE()
    primitive.MessageID = 7
    primitive.Priority = 2
    primitive.AffectedSOPClassUID = CTImageStorage
    primitive.AffectedSOPInstanceUID = "1.2.3"
    primitive.DataSet = BytesIO(data_set)
    return primitive


def test_a_request_is_understood():
    request = store_request(command_of(C_STORE_RQ(), a_store()))
    assert request.message_id == 7
    assert request.sop_class_uid.rstrip(b"\0") == CTImageStorage.encode()
    assert request.sop_instance_uid.rstrip(b"\0") == b"1.2.3"


def test_what_is_no_request_to_store_is_none():
    echo = C_ECHO()
    echo.MessageID = 1
    echo.AffectedSOPClassUID = "1.2.840.10008.1.1"
    assert store_request(command_of(C_ECHO_RQ(), echo)) is None


def test_what_is_cut_short_names_no_instance():
    command = command_of(C_STORE_RQ(), a_store())
    for length in range(len(command)):
        request = store_request(command[:length])
        assert request is None or request.sop_instance_uid == b""


@given(st.binary(max_size=300))
def test_any_bytes_are_a_request_or_none(command):
    assert isinstance(store_request(command), StoreRequest | None)


@given(st.binary(max_size=300), st.integers(0, 300))
def test_a_damaged_request_is_a_request_or_none(junk, at):
    command = command_of(C_STORE_RQ(), a_store())
    assert isinstance(store_request(command[:at] + junk + command[at + len(junk) :]), StoreRequest | None)


@pytest.mark.parametrize("status", [0x0000, 0xA700, 0xC000])
def test_an_answer_is_what_pynetdicom_reads(status):
    request = store_request(command_of(C_STORE_RQ(), a_store()))
    encoded = store_response(request, context_id=3, status=status)
    assert int.from_bytes(encoded[2:6], "big") == len(encoded) - 6
    pdu = P_DATA_TF()
    pdu.decode(encoded)
    primitive = pdu.to_primitive()
    assert isinstance(primitive, P_DATA)
    message = C_STORE_RSP()
    assert message.decode_msg(primitive)
    answer = message.message_to_primitive()
    assert (answer.Status, answer.MessageIDBeingRespondedTo) == (status, 7)
    assert (answer.AffectedSOPInstanceUID, answer.AffectedSOPClassUID) == ("1.2.3", CTImageStorage)
    assert message.context_id == 3


def test_what_cannot_be_sent_back_is_left_out():
    request = StoreRequest(message_id=1, sop_class_uid=b"", sop_instance_uid=b"9" * 5000)
    encoded = store_response(request, context_id=1, status=0xA900)
    assert len(encoded) < 100
    pdu = P_DATA_TF()
    pdu.decode(encoded)
    message = C_STORE_RSP()
    assert message.decode_msg(pdu.to_primitive())
    assert message.command_set.Status == 0xA900
