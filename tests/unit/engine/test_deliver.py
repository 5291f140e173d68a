from __future__ import annotations

import logging
from pathlib import Path

import pytest

from flows_engine.deliver import DeliveryResult, deliver
from flows_engine.errors import DeliveryRefusedError, DestinationUnavailableError, NothingToSendError
from tests.factories import ct_slice
from tests.fakes.destination import FakeDestination

logger = logging.getLogger("test")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "output"
    (folder / "deep").mkdir(parents=True)
    for number, name in enumerate(("a.dcm", "deep/b", "c\nnewline")):
        ct_slice(instance_number=number + 1).save_as(folder / name, enforce_file_format=True)
    (folder / "report.txt").write_text("fine")
    (folder / "link").symlink_to(folder / "a.dcm")
    return folder


def _deliver(folder: Path, destination: FakeDestination, number: int = 1) -> DeliveryResult:
    journal_path = folder.parent / "deliveries" / f"{number}.jsonl"
    return deliver(folder, destination=destination, journal_path=journal_path, logger=logger)


def test_every_dicom_file_at_any_depth_is_sent_once(folder: Path) -> None:
    destination = FakeDestination()
    result = _deliver(folder, destination)
    assert (result.file_count, result.sent_count, result.not_dicom_count) == (3, 3, 1)
    assert sorted(path.name for path in destination.received) == ["a.dcm", "b", "c\nnewline"]
    again = _deliver(folder, destination)
    assert (again.file_count, again.sent_count) == (3, 0)
    assert len(destination.received) == 3
    assert DeliveryResult.model_validate_json(result.model_dump_json()) == result


def test_a_retry_sends_what_is_missing(folder: Path) -> None:
    numbers = iter(range(10))
    with pytest.raises(DestinationUnavailableError):
        _deliver(folder, FakeDestination(lambda _: None if next(numbers) == 1 else 0))
    healthy = FakeDestination()
    assert _deliver(folder, healthy).sent_count == 2
    assert len(healthy.received) == 2


def test_each_destination_gets_its_own(folder: Path) -> None:
    _deliver(folder, FakeDestination())
    assert _deliver(folder, FakeDestination(), number=2).sent_count == 3


def test_a_refusal_says_how_many_and_why(folder: Path) -> None:
    numbers = iter(range(10))
    with pytest.raises(DeliveryRefusedError) as caught:
        _deliver(folder, FakeDestination(lambda _: 0xA900 if next(numbers) else 0))
    assert str(caught.value) == "FAKE@nowhere:104 did not take 2 of 3 instances: 2 times status 0xA900"


def test_a_receiver_out_of_resources_may_have_room_later(folder: Path) -> None:
    with pytest.raises(DestinationUnavailableError, match="3 of 3 instances: 3 times status 0xA700"):
        _deliver(folder, FakeDestination(lambda _: 0xA700))


def test_many_reasons_stay_one_short_line(folder: Path) -> None:
    for number in range(20):
        ct_slice(instance_number=number).save_as(folder / f"more{number}", enforce_file_format=True)
    numbers = iter(range(0xC000, 0xC100))
    with pytest.raises(DeliveryRefusedError, match="and 20 more reasons") as caught:
        _deliver(folder, FakeDestination(lambda _: next(numbers)))
    assert len(str(caught.value)) < 300


def test_nothing_to_send_is_not_success(tmp_path: Path) -> None:
    (tmp_path / "output").mkdir()
    (tmp_path / "output" / "report.txt").write_text("fine")
    with pytest.raises(NothingToSendError, match="1 files, none of them DICOM"):
        _deliver(tmp_path / "output", FakeDestination())
