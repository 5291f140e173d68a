"""A gateway in processes of its own, senders that load it, and the account of what became of all that they sent."""

from __future__ import annotations

import contextlib
import hashlib
import os
import random
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from pydicom.dataset import Dataset
from pydicom.uid import generate_uid

from dicom_gateway.ledger import Ledger
from dicom_gateway.wiring import open_ledger
from flows_engine.handoff.study_store import StudyStore
from tests.fakes.instances import as_file, ct, received
from tests.fakes.pipelining_scu import answers as answers_of
from tests.fakes.pipelining_scu import prepared
from tests.fakes.store_scu import association, send
from tests.services import wait_until

SUCCESS = 0x0000


@dataclass(frozen=True)
class Sent:
    """An instance that was sent; its data set is the same whenever it is made."""

    uid: str
    patient: int
    study: int
    pixel_bytes: int

    def dataset(self) -> Dataset:
        return ct(
            SOPInstanceUID=self.uid,
            PatientID=f"P{self.patient}",
            StudyInstanceUID=f"1.2.{self.patient}.{self.study}",
            PixelData=(self.uid.encode() * (self.pixel_bytes // len(self.uid) + 1))[: self.pixel_bytes],
        )

    def digest(self) -> str:
        return hashlib.sha256(as_file(received(self.dataset()))).hexdigest()


class Senders:
    """Send associations of a few instances each, for as long as they are told to; note what was answered."""

    def __init__(
        self,
        count: int,
        *,
        port: int,
        draw: random.Random,
        pixel_bytes: Sequence[int] = (32,),
        ways: Sequence[Callable[[int, list[Sent], dict[str, int | None]], None]] = (),
    ) -> None:
        self.port = port
        self.sent: dict[str, Sent] = {}
        self.answers: dict[str, int | None] = {}
        """The status of each instance; None where it was sent, and no answer came."""
        self.unanswered: set[str] = set()
        """What had no answer, once or more often: nobody knows whether it is stored."""
        self._draw = draw
        self._pixel_bytes = pixel_bytes
        self._ways = [*ways, send_by_association]
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=self._run, args=(number,)) for number in range(count)]

    def __enter__(self) -> Senders:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()

    def acknowledged(self) -> list[str]:
        return [uid for uid, status in self.answers.items() if status == SUCCESS]

    def missing(self) -> list[Sent]:
        """Return what a sender would send again."""
        return [one for uid, one in self.sent.items() if self.answers.get(uid) != SUCCESS]

    def send(self, instances: list[Sent], *, number: int = -1) -> None:
        """Send in one association; what cuts it short is noted as no answer, and goes no further."""
        answers: dict[str, int | None] = {}
        with contextlib.suppress(Exception):
            self._ways[number % len(self._ways)](self.port, instances, answers)
        self.unanswered |= {uid for uid, status in answers.items() if status is None}
        self.answers |= answers

    def _run(self, number: int) -> None:
        while not self._stop.is_set():
            patient, draw = self._draw.randint(1, 2), self._draw
            instances = [
                Sent(str(generate_uid()), patient, draw.randint(1, 2), draw.choice(self._pixel_bytes))
                for _ in range(draw.randint(1, 8))
            ]
            self.sent |= {one.uid: one for one in instances}
            self.send(instances, number=number)
            self._stop.wait(0.01)


def send_by_association(port: int, instances: list[Sent], answers: dict[str, int | None]) -> None:
    with association(port) as opened:
        for one in instances:
            answers[one.uid] = None
            answers[one.uid] = send(opened, one.dataset())


def send_in_a_window(port: int, instances: list[Sent], answers: dict[str, int | None]) -> None:
    study = prepared(*(one.dataset() for one in instances))
    answers |= dict.fromkeys((one.uid for one in instances), None)
    for place, status in answers_of(port, study):
        answers[instances[place].uid] = status


@contextlib.contextmanager
def settled(data_dir: Path, *, seconds: float = 120) -> Iterator[Ledger]:
    """Give the ledger once the spool is empty, and every study was triggered."""
    ledger = open_ledger(data_dir)
    try:
        with contextlib.suppress(TimeoutError):
            wait_until(lambda: not _unsettled(data_dir, ledger), seconds=seconds, what="the end", every_seconds=0.1)
        if left := _unsettled(data_dir, ledger):
            raise AssertionError("\n".join(["not settled:", *left]))
        yield ledger
    finally:
        ledger.close()


def _unsettled(data_dir: Path, ledger: Ledger) -> list[str]:
    """Return what is not done yet, a line each."""
    studies = ledger.studies(limit=100_000)
    return [
        *(
            f"in the spool: {folder} {names}"
            for folder, _, names in os.walk(data_dir / "spool")
            if folder != str(data_dir / "spool")
        ),
        *(f"{study.study_id}: {study.outcome} {study.reason}" for study in studies if study.outcome != "triggered"),
        *(f"{run.study_id}: {run.last_error}" for one in studies for run in one.runs if run.state != "created"),
        *([] if studies else ["there is no study"]),
    ]


def assert_all_is_accounted_for(data_dir: Path, ledger: Ledger, senders: Senders) -> str:
    """Acknowledged is stored, byte for byte, and triggered, once; nothing else is. Return the figures, as a line."""
    store = StudyStore(data_dir / "studies")
    files = {study_id: list(store.input_folder(study_id).rglob("*.dcm")) for study_id in store.study_ids()}
    places = Counter(path.stem for paths in files.values() for path in paths)
    acknowledged = senders.acknowledged()
    assert [uid for uid in acknowledged if not places[uid]] == [], "acknowledged, and not stored"
    twice = {uid for uid, count in places.items() if count > 1}
    assert twice - senders.unanswered == set(), "stored, and refused, and sent again"
    assert set(places) - {*acknowledged, *senders.unanswered} == set(), "stored, and refused"
    changed = [
        path.name
        for paths in files.values()
        for path in paths
        if hashlib.sha256(path.read_bytes()).hexdigest() != senders.sent[path.stem].digest()
    ]
    assert changed == []
    runs = Counter((data_dir / "runs" / path.name).read_text() for path in (data_dir / "runs").iterdir())
    assert runs == Counter(dict.fromkeys(files, 1))
    studies = ledger.studies(limit=100_000)
    assert {study.study_id: study.instance_count for study in studies} == {
        one: len(paths) for one, paths in files.items()
    }
    return f"sent {len(senders.sent)}, acknowledged {len(acknowledged)}, stored {len(places)}, studies {len(studies)}"
