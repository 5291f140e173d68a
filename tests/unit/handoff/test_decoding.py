from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from flows_engine.handoff.decoding import decode


@given(
    raw=st.binary(max_size=200),
    charset=st.binary(max_size=40),
    vr=st.sampled_from(["LO", "PN", "UI", "DS", "AT", "FL"]),
)
def test_decoding_never_raises(raw, charset, vr):
    values = decode((vr, raw), character_sets=charset, little_endian=True)
    assert values
    assert all(isinstance(value, str) for value in values)
