from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dicom_gateway.uid import is_uid, sent_uid

HOSTILE = ["", ".", "1.", ".1", "1..2", "../../etc/x", "1" * 65, "1.2.é", "1.2\n", "1.2 ", "\u0661.\u0662", "1.2\0.3"]


@pytest.mark.parametrize("uid", ["1", "1.2.840.10008", "0.1", "1.02.3", "1" * 64])
def test_a_uid_is_digits_and_dots(uid):
    assert is_uid(uid)
    assert sent_uid(uid.encode() + b"\0") == uid
    assert sent_uid(uid.encode() + b" ") == uid


@pytest.mark.parametrize("uid", [None, *HOSTILE])
def test_hostile_text_is_no_uid(uid):
    assert not is_uid(uid)


@pytest.mark.parametrize("uid", [text for text in HOSTILE if text != "1.2 "])
def test_hostile_bytes_are_no_uid(uid):
    assert sent_uid(uid.encode("utf-8")) is None


@given(st.text(max_size=80))
def test_a_uid_is_always_a_harmless_file_name(text):
    if is_uid(text):
        assert set(text) <= set("0123456789.")
        assert 0 < len(text) <= 64
        assert not text.startswith(".")


@given(st.binary(max_size=80))
def test_whatever_is_sent_is_a_uid_or_none(sent):
    assert sent_uid(sent) is None or is_uid(sent_uid(sent))
