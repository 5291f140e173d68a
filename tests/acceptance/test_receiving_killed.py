"""Processes that receive, and whole gateways, are killed at random under load: what was acknowledged is stored and
triggered, once.

``RECEIVING_KILL_ROUNDS`` says how often, ``RECEIVING_KILL_SEED`` which moments and victims are drawn.
"""

from __future__ import annotations

import contextlib
import os
import random
import signal
import time
from collections import Counter

import pytest

from tests.acceptance.receiving import Senders, assert_all_is_accounted_for, send_in_a_window, settled
from tests.integration.mortal_gateway import MortalGateway
from tests.services import unused_port

ROUNDS = int(os.environ.get("RECEIVING_KILL_ROUNDS", "6"))
SEED = int(os.environ.get("RECEIVING_KILL_SEED", "1"))
DURABILITIES = ("instance", "association", "none")


@pytest.mark.timeout(7200)
@pytest.mark.parametrize("group_by", ["association", "study"])
def test_what_was_acknowledged_is_stored_and_triggered_once(tmp_path, group_by):
    draw, kills = random.Random(SEED), Counter()
    settings = {"receiver_processes": 2, "group_by": group_by, "study_idle_seconds": 0.3, "late_arrival": "new"}
    settings["ae_port"] = unused_port()
    gateway = MortalGateway(tmp_path, durability=DURABILITIES[0], **settings)
    try:
        senders = Senders(4, port=settings["ae_port"], draw=random.Random(SEED), ways=[send_in_a_window])
        with senders:
            for number in range(ROUNDS):
                time.sleep(draw.uniform(0.05, 1.0))  # the moment of the kill is what this test draws by chance
                receivers = gateway.receivers()
                # For a second after all of them were killed there is none.
                victim = draw.choice(["receiver", "gateway", "everything"] if receivers else ["gateway"])
                kills[victim] += 1
                if victim == "receiver":
                    os.kill(draw.choice(receivers), signal.SIGKILL)
                    continue
                gateway.process.kill()
                for receiver in receivers if victim == "everything" else ():
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(receiver, signal.SIGKILL)
                gateway.kill()
                gateway = MortalGateway(tmp_path, durability=DURABILITIES[number % 3], **settings)
    finally:
        gateway.kill()
    assert len(senders.acknowledged()) > ROUNDS

    last = MortalGateway(tmp_path, **settings)
    try:
        with settled(tmp_path) as ledger:
            print(f"{dict(kills)}: {assert_all_is_accounted_for(tmp_path, ledger, senders)}")
    finally:
        last.kill()
