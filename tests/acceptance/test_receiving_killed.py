"""Processes that receive, and whole gateways, are killed at random under load: what was acknowledged is stored and
triggered, once.

``RECEIVING_KILL_ROUNDS`` says how often, ``RECEIVING_KILL_SEED`` which moments and victims are drawn.
"""

from __future__ import annotations

import contextlib
import os
import random
import signal
import threading
import time
from collections import Counter

import pytest
from pydicom.uid import generate_uid

from dicom_gateway.wiring import open_ledger
from flows_engine.handoff.study_store import StudyStore
from tests.fakes.instances import ct
from tests.fakes.store_scu import association, send
from tests.integration.mortal_gateway import MortalGateway
from tests.services import unused_port

ROUNDS = int(os.environ.get("RECEIVING_KILL_ROUNDS", "6"))
SEED = int(os.environ.get("RECEIVING_KILL_SEED", "1"))
SENDERS = 3
DURABILITIES = ("instance", "association", "none")


class Senders:
    """Send associations of a few instances each, for as long as they are told to; note what was acknowledged."""

    def __init__(self):
        self.acknowledged = []
        self.port = 0
        self.draw = random.Random(SEED)
        self.stop = threading.Event()
        self.threads = [threading.Thread(target=self._run) for _ in range(SENDERS)]

    def _run(self):
        while not self.stop.is_set():
            # A gateway that is being killed is met in every way there is.
            with contextlib.suppress(Exception), association(self.port) as opened:
                for _ in range(self.draw.randint(1, 8)):
                    uid = generate_uid()
                    patient = f"P{self.draw.randint(1, 2)}"
                    dataset = ct(SOPInstanceUID=uid, PatientID=patient, StudyInstanceUID=f"1.2.{patient[1:]}")
                    if send(opened, dataset) == 0x0000:
                        self.acknowledged.append(str(uid))
            self.stop.wait(0.01)


def everything_is_triggered(ledger):
    studies = ledger.studies(limit=100_000)
    return studies and all(
        study.outcome == "triggered" and all(run.state == "created" for run in study.runs) for study in studies
    )


@pytest.mark.timeout(7200)
@pytest.mark.parametrize("group_by", ["association", "study"])
def test_what_was_acknowledged_is_stored_and_triggered_once(tmp_path, group_by):
    draw, senders, kills = random.Random(SEED), Senders(), Counter()
    settings = {"receiver_processes": 2, "group_by": group_by, "study_idle_seconds": 0.3, "late_arrival": "new"}
    settings["ae_port"] = senders.port = unused_port()
    gateway = MortalGateway(tmp_path, durability=DURABILITIES[0], **settings)
    for thread in senders.threads:
        thread.start()
    try:
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
        senders.stop.set()
        for thread in senders.threads:
            thread.join()
        gateway.kill()
    assert len(senders.acknowledged) > ROUNDS

    last = MortalGateway(tmp_path, **{**settings, "late_arrival": "new"})
    ledger = open_ledger(tmp_path)
    try:
        deadline = time.monotonic() + 120
        while list((tmp_path / "spool").iterdir()) or not everything_is_triggered(ledger):
            assert time.monotonic() < deadline, "not every study was triggered in time"
            time.sleep(0.1)
        studies = ledger.studies(limit=100_000)
    finally:
        ledger.close()
        last.kill()

    store = StudyStore(tmp_path / "studies")
    files = {study_id: list(store.input_folder(study_id).rglob("*.dcm")) for study_id in store.study_ids()}
    places = Counter(path.stem for paths in files.values() for path in paths)
    print(f"{dict(kills)}: acknowledged {len(senders.acknowledged)}, stored {len(places)}, studies {len(studies)}")
    assert {uid: places[uid] for uid in senders.acknowledged if places[uid] != 1} == {}
    assert set(places.values()) == {1}
    runs = Counter((tmp_path / "runs" / path.name).read_text() for path in (tmp_path / "runs").iterdir())
    assert runs == Counter(dict.fromkeys(files, 1))
    assert {study.study_id: study.instance_count for study in studies} == {
        one: len(paths) for one, paths in files.items()
    }
