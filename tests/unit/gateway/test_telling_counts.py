from __future__ import annotations

import logging
import socket

import pytest

from dicom_gateway.process_channel import ProcessChannel
from dicom_gateway.tally import Counts, Tally
from dicom_gateway.telling_counts import TALLY_KIND, TellingCounts, take_counts


@pytest.fixture
def channels():
    one, other = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    other.settimeout(10)
    pair = ProcessChannel(one), ProcessChannel(other)
    yield pair
    for channel in pair:
        channel.close()


def test_many_instances_are_one_message(channels):
    here, there = channels
    tally, total = Tally(), Tally()
    for _ in range(1000):
        tally.answered(0, 500, 0.001)
    assert TellingCounts(tally, here).tell()
    message = there.receive()
    take_counts(message.values, total)
    assert message.kind == TALLY_KIND
    assert total.counts().answers == {"stored": 1000}


def test_it_tells_by_itself_and_ends_with_the_gateway(channels):
    here, there = channels
    tally = Tally()
    telling = TellingCounts(tally, here)
    telling.start()
    tally.accepted()
    assert there.receive().values["counts"]["accepted"] == 1
    there.close()
    tally.accepted()
    telling._thread.join(timeout=10)
    assert not telling._thread.is_alive()


def test_nothing_is_told_of_nothing(channels):
    here, there = channels
    assert TellingCounts(Tally(), here).tell()
    here.send("next")
    assert there.receive().kind == "next"


@pytest.mark.parametrize("values", [{}, {"counts": 7}, {"counts": {"refused": {"CANARY": 1}}}])
def test_what_is_not_understood_harms_nobody(values, caplog):
    tally = Tally()
    with caplog.at_level(logging.ERROR):
        take_counts(values, tally)
    assert tally.counts() == Counts()
    assert "not understood" in caplog.text
    assert "CANARY" not in caplog.text
