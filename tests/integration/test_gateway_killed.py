"""The gateway is killed again and again, at moments nobody chose. Nothing acknowledged is lost, nothing runs twice."""

from __future__ import annotations

import contextlib
import random
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

ROUNDS = 20


def keep_sending(port, acknowledged, stop):
    """Send associations of a few instances each until told to stop; note what was answered with Success."""
    while not stop.is_set():
        with contextlib.suppress(Exception), association(port) as opened:
            for _ in range(random.randint(1, 6)):
                uid = generate_uid()
                if send(opened, ct(SOPInstanceUID=uid, PatientID=f"P{random.randint(1, 2)}")) == 0x0000:
                    acknowledged.append(str(uid))


@pytest.mark.timeout(600)
def test_twenty_kills_lose_nothing_and_repeat_nothing(tmp_path):
    acknowledged = []
    for _ in range(ROUNDS):
        gateway, stop = MortalGateway(tmp_path), threading.Event()
        senders = [threading.Thread(target=keep_sending, args=(gateway.port, acknowledged, stop)) for _ in range(2)]
        for sender in senders:
            sender.start()
        time.sleep(random.uniform(0.05, 0.8))  # the moment of the kill is what this test draws by chance
        stop.set()
        gateway.kill()
        for sender in senders:
            sender.join()
    assert len(acknowledged) > ROUNDS

    last = MortalGateway(tmp_path)
    ledger = open_ledger(tmp_path)
    try:
        deadline = time.monotonic() + 60
        while not all(
            study.outcome == "triggered" and all(run.state == "created" for run in study.runs)
            for study in ledger.studies(limit=100_000)
        ):
            assert time.monotonic() < deadline, "not every study was triggered in time"
            time.sleep(0.1)
        studies = ledger.studies(limit=100_000)
    finally:
        ledger.close()
        last.kill()

    store = StudyStore(tmp_path / "studies")
    places = Counter(
        path.stem for study_id in store.study_ids() for path in store.input_folder(study_id).rglob("*.dcm")
    )
    assert {uid: places[uid] for uid in acknowledged if places[uid] != 1} == {}
    runs = Counter((tmp_path / "runs" / path.name).read_text() for path in (tmp_path / "runs").iterdir())
    assert runs == Counter(dict.fromkeys(store.study_ids(), 1))
    assert {study.study_id for study in studies} == set(store.study_ids())
    assert list((tmp_path / "spool").iterdir()) == []
    for study in studies:
        assert len(list(store.input_folder(study.study_id).rglob("*.dcm"))) == study.instance_count
