from __future__ import annotations

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dicom_gateway.file_meta import file_meta
from dicom_gateway.part10_head import LONGEST_HEAD_BYTES, HeadError, read_part10_head

HEAD = file_meta(sop_class_uid="1.2", sop_instance_uid="1.2.3", transfer_syntax_uid="1.2.840.10008.1.2.1")
DATA_SET = b"\x08\0\x05\0CS\x0a\0ISO_IR 100" * 20
MARK = b"\0" * 128 + b"DICM"


def element(number, value, *, vr=b"UI"):
    return struct.pack("<HH2sH", 2, number, vr, len(value)) + value


UIDS = element(2, b"1.2\0") + element(3, b"1.2.3\0") + element(0x10, b"1.2.840.10008.1.2.1\0")


def test_it_says_what_comes_and_where():
    head = read_part10_head(HEAD + DATA_SET)
    assert (head.sop_class_uid, head.sop_instance_uid) == ("1.2", "1.2.3")
    assert head.transfer_syntax_uid == "1.2.840.10008.1.2.1"
    assert head.data_set_at == len(HEAD)


@pytest.mark.parametrize("keep", [0, 100, 131, 139, 143, len(HEAD) - 1])
def test_more_is_waited_for(keep):
    assert read_part10_head(HEAD[:keep]) is None


def test_without_its_length_it_ends_where_another_group_begins():
    assert read_part10_head(MARK + UIDS) is None
    assert read_part10_head(MARK + UIDS + DATA_SET).data_set_at == len(MARK + UIDS)


def test_a_data_set_that_looks_like_meta_information_is_told_by_the_length():
    assert read_part10_head(HEAD + b"\x02\0\x10\0UI\x02\x009\0").data_set_at == len(HEAD)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"x" * 200, "does not begin as"),
        (MARK + element(0, struct.pack("<L", len(UIDS) - 1), vr=b"UL") + UIDS + DATA_SET, "than it says"),
        (MARK + element(0, struct.pack("<L", len(UIDS) + 9), vr=b"UL") + UIDS + DATA_SET, "than it says"),
        (MARK + element(0, b"\xff" * 4, vr=b"UL") + UIDS + DATA_SET, "than it says"),
        (MARK + UIDS + struct.pack("<HH2sHL", 2, 0x102, b"OB", 0, 0xFFFFFFFF), "too long"),
        (MARK + element(2, b"1.2\0") + DATA_SET, "no SOP Instance UID"),
        (MARK + element(2, b"../../CANARY") + DATA_SET, "no SOP Class UID"),
        (MARK + DATA_SET, "no SOP Class UID"),
    ],
)
def test_what_lies_is_refused(content, reason):
    with pytest.raises(HeadError, match=reason) as caught:
        read_part10_head(content)
    assert "CANARY" not in str(caught.value)


@given(st.binary(max_size=300))
def test_whatever_comes_it_is_read_waited_for_or_refused(content):
    try:
        head = read_part10_head(MARK + content)
    except HeadError:
        return
    assert head is None or head.data_set_at <= len(MARK + content)


def test_no_more_is_waited_for_than_a_head_may_be_long():
    endless = MARK + element(0x16, b"x" * 1000, vr=b"AE") * 200
    assert len(endless) > LONGEST_HEAD_BYTES
    with pytest.raises(HeadError, match="too long"):
        read_part10_head(endless)
