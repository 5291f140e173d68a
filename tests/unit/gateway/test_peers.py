from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dicom_gateway.peers import (
    CALLED_NOT_RECOGNISED,
    CALLING_NOT_RECOGNISED,
    TOO_MANY,
    TOO_MANY_OF_PEER,
    AssociationLimits,
    PeerRules,
    parse_peer_rule,
)


def rules(*written, called=""):
    return PeerRules(allowed=tuple(map(parse_peer_rule, written)), called_ae_title=called)


def admits(*written, ae_title="CT1", address="10.1.2.3"):
    return rules(*written).rejection(calling_ae_title=ae_title, called_ae_title="X", address=address) is None


def test_without_rules_everyone_may_send():
    assert admits()


@pytest.mark.parametrize(
    "written",
    [
        "CT1",
        "CT?",
        "C*",
        "*",
        "10.1.2.3",
        "10.1.2.0/24",
        "10.1.2.9/24",
        "CT1@10.1.2.3",
        "C*@10.0.0.0/8",
        " CT1 ",
        "CT1@::/0,CT1",
    ],
)
def test_one_rule_that_fits_is_enough(written):
    assert admits("NOBODY", *written.split(","))


@pytest.mark.parametrize(
    "written",
    ["CT2", "ct1", "CT", "T*", "10.1.2.4", "10.1.3.0/24", "CT1@10.1.2.4", "CT2@10.1.2.3", "::/0", "::ffff:10.1.2.4"],
)
def test_a_rule_that_does_not_fit_rejects(written):
    assert not admits(written)


def test_padding_is_no_part_of_a_title():
    assert admits("CT1", ae_title="CT1   ")


def test_an_address_in_ipv6s_clothes_is_the_same_address():
    assert admits("10.1.2.0/24", address="::ffff:10.1.2.3")
    assert admits("fe80::/10", address="fe80::1%eth0")
    assert not admits("10.1.2.0/24", address="")


@pytest.mark.parametrize(
    "written", ["", "  ", "A-TITLE-THAT-IS-LONG", "@10.0.0.1", "CT1@10.0.0.0/99", "CT[1]", "C\\T", "C\nT"]
)
def test_what_is_no_rule_is_refused(written):
    with pytest.raises(ValueError, match="write an AE title, an address or network"):
        parse_peer_rule(written)


@given(st.text(max_size=30))
def test_any_text_is_a_rule_or_refused(text):
    try:
        rule = parse_peer_rule(text)
    except ValueError:
        return
    rule.admits(ae_title="CT1", address="10.1.2.3")


def test_who_calls_another_name_is_rejected_only_where_that_matters():
    peer = {"calling_ae_title": "CT1", "address": "10.1.2.3"}
    assert rules().rejection(called_ae_title="OTHER", **peer) is None
    assert rules(called="STORESCP").rejection(called_ae_title="OTHER", **peer) is CALLED_NOT_RECOGNISED
    assert rules(called="STORESCP").rejection(called_ae_title="STORESCP ", **peer) is None


def test_a_stranger_does_not_learn_what_name_to_call():
    answer = rules("CT2", called="STORESCP").rejection(
        calling_ae_title="CT1", called_ae_title="OTHER", address="10.1.2.3"
    )
    assert answer is CALLING_NOT_RECOGNISED


def test_who_has_no_title_is_known_by_its_address_where_rules_name_addresses():
    named = rules("CT1", "PACS@10.1.3.4", "10.2.0.0/16")
    assert [named.admits_address(one) for one in ("10.1.3.4", "::ffff:10.2.9.9", "10.1.3.5", "")] == [1, 1, 0, 0]
    assert rules("CT1", "MR*").admits_address("10.1.3.5")
    assert rules().admits_address("10.1.3.5")


def test_limits_count_all_and_those_of_the_peer():
    limits = AssociationLimits(in_all=3, of_one_peer=2)
    assert limits.rejection(addresses=[], address="a") is None
    assert limits.rejection(addresses=["a", "b"], address="a") is None
    assert limits.rejection(addresses=["a", "a"], address="a") is TOO_MANY_OF_PEER
    assert limits.rejection(addresses=["a", "a"], address="b") is None
    assert limits.rejection(addresses=["a", "b", "c"], address="d") is TOO_MANY
