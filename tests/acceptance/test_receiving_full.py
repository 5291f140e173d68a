"""The disk fills and empties at random moments under load: what was acknowledged is stored and triggered, once, and the
gateway goes on by itself.

``RECEIVING_FULL_ROUNDS`` says how often a gateway goes through that, ``RECEIVING_FULL_SEED`` what is drawn.
"""

from __future__ import annotations

import contextlib
import os
import random
import shutil
import threading
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from tests.acceptance.receiving import Senders, Sent, assert_all_is_accounted_for, send_in_a_window, settled
from tests.fakes.stow_client import TOKEN, body, dicom_file, post
from tests.integration.mortal_gateway import MortalGateway
from tests.services import unused_port, wait_until
from tests.small_disk import small_disk

ROUNDS = int(os.environ.get("RECEIVING_FULL_ROUNDS", "2"))
SEED = int(os.environ.get("RECEIVING_FULL_SEED", "1"))
DURABILITIES = ("instance", "association", "none")
DISK_MIB = 384
RESERVE_BYTES = 32 * 2**20
CT_BYTES = 512 * 512 * 2
SMALL_BYTES = 3000
FILLINGS = 4
OUT_OF_RESOURCES = 0xA700


class Filler:
    """Takes what is free on a disk, all or nearly, bytes or names, for moments that are drawn."""

    def __init__(self, folder: Path, *, draw: random.Random) -> None:
        self._folder = folder
        self._draw = draw
        self._pause = threading.Event()
        folder.mkdir()

    def fill_and_free(self) -> None:
        if self._draw.random() < 0.2:
            self._take_names()
        else:
            self._take_bytes(leave=self._draw.choice([0, 0, 4096, 100_000, 2_000_000, RESERVE_BYTES]))
        self._pause.wait(self._draw.uniform(0.02, 0.6))
        self.free()
        self._pause.wait(self._draw.uniform(0.02, 0.6))

    def free(self) -> None:
        for path in list(self._folder.iterdir()):
            path.unlink()

    def _take_bytes(self, *, leave: int) -> None:
        with (self._folder / "large").open("wb") as file:
            part = 1.0
            # Others write as well: what was free a moment ago need not be there any more.
            while part > 0.01:
                status = os.statvfs(self._folder)
                rest = int((status.f_bavail * status.f_frsize - leave) * part)
                try:
                    os.posix_fallocate(file.fileno(), file.seek(0, os.SEEK_END), max(rest, 1))
                except OSError:
                    part /= 2
                else:
                    part = part if rest > 0 else 0

    def _take_names(self) -> None:
        with contextlib.suppress(OSError):
            for number in range(1_000_000):
                (self._folder / str(number)).touch()


def sender_over_http(port: int):
    """Return a way to send to ``port``: all of it in one Store request."""

    def send(_: int, instances: list[Sent], answers: dict[str, int | None]) -> None:
        answers |= dict.fromkeys((one.uid for one in instances), None)
        content = iter([body(dicom_file(one.dataset()) for one in instances)])
        answer = post(port, content)
        if answer.status_code not in {200, 202, 507}:
            answers |= dict.fromkeys(answers, answer.status_code)  # which none of them should have
            return
        told = answer.json()
        failed = {
            item["00081155"]["Value"][0]: item["00081197"]["Value"][0]
            for item in told.get("00081198", {}).get("Value", [])
        }
        if answer.status_code == 507 and set(failed.values()) == {OUT_OF_RESOURCES}:
            # Perhaps only its end could not be noted: what was whole is kept, as that of an association that was not
            # released, and what comes again is the same.
            return
        answers |= {item["00081155"]["Value"][0]: 0 for item in told.get("00081199", {}).get("Value", [])}
        answers |= failed

    return send


@contextlib.contextmanager
def gateway_on(data_dir: Path, runs: Path, **settings: object) -> Iterator[MortalGateway]:
    data_dir.mkdir()
    runs.mkdir()
    (data_dir / "runs").symlink_to(runs)
    gateway = MortalGateway(data_dir, log=runs.with_suffix(".log"), **settings)
    try:
        yield gateway
    finally:
        gateway.kill()
        shutil.rmtree(data_dir)


def is_ready(port: int) -> bool:
    return httpx.get(f"http://127.0.0.1:{port}/readyz", timeout=10).status_code == 200


@pytest.mark.timeout(14_400)
@pytest.mark.parametrize(("file_system", "first_seed"), [("tmpfs", SEED), ("ext4", SEED + ROUNDS)])
def test_a_disk_that_fills_loses_nothing_and_is_got_over(tmp_path, file_system, first_seed):
    with small_disk(tmp_path / "disk", size_mib=DISK_MIB, file_system=file_system) as disk:
        for number in range(ROUNDS):
            seed = first_seed + number
            print(file_system, seed, one_round(disk, tmp_path / f"runs-{number}", draw=random.Random(seed), seed=seed))


def all_is_sent(senders: Senders) -> bool:
    """Send again what was not acknowledged, as a sender does; tell whether it is now."""
    again = senders.missing()
    for at in range(0, len(again), 50):
        senders.send(again[at : at + 50])
    return not senders.missing()


def one_round(disk: Path, runs: Path, *, draw: random.Random, seed: int) -> str:
    ports = {name: unused_port() for name in ("ae_port", "stow_port", "metrics_port")}
    settings = {
        **ports,
        "durability": DURABILITIES[seed % 3],
        "disk_reserve_bytes": draw.choice([0, 0, RESERVE_BYTES]),
        "group_by": draw.choice(["association", "study"]),
        "late_arrival": "new",
        "study_idle_seconds": 0.3,
        "stow_token": TOKEN,
        "receiver_processes": 2,
    }
    data_dir = disk / "data"
    with gateway_on(data_dir, runs, **settings) as gateway:
        receivers, filler = gateway.receivers(), Filler(disk / "filler", draw=draw)
        senders = Senders(
            4,
            port=ports["ae_port"],
            draw=random.Random(seed),
            pixel_bytes=(SMALL_BYTES, SMALL_BYTES, CT_BYTES),
            ways=[sender_over_http(ports["stow_port"]), send_in_a_window],
        )
        with senders:
            for _ in range(FILLINGS):
                filler.fill_and_free()
        answers = Counter(senders.answers.values())
        assert set(answers) <= {0, OUT_OF_RESOURCES, None}
        wait_until(lambda: is_ready(ports["metrics_port"]), seconds=20, what="the gateway is ready again")
        again = senders.missing()
        wait_until(lambda: all_is_sent(senders), seconds=60, what="all that was refused is taken")
        with settled(data_dir, seconds=30) as ledger:
            line = assert_all_is_accounted_for(data_dir, ledger, senders)
        assert gateway.process.poll() is None
        assert gateway.receivers() == receivers
        (disk / "filler").rmdir()
    told = {"none": answers[None], "refused": answers[OUT_OF_RESOURCES], "again": len(again)}
    return f"{settings['durability']}, reserve {settings['disk_reserve_bytes']}: {line}; {told}"
