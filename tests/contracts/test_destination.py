"""What a Destination promises, asked of the fake and of a DICOM node with a real receiver behind it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from flows_engine.destinations.dicom_node import DicomNode
from flows_engine.errors import DestinationUnavailableError
from flows_engine.interfaces import Destination
from tests.factories import ct_slice
from tests.fakes.destination import FakeDestination
from tests.fakes.store_scp import StoreScp

Status = Callable[[int], int | None]
Make = Callable[[Status], Destination]


@pytest.fixture(params=["fake", "dicom node"])
def make(request: pytest.FixtureRequest) -> Iterator[Make]:
    with ExitStack() as stack:

        def fake(status: Status) -> Destination:
            numbers = iter(range(1_000_000))
            return FakeDestination(lambda _: status(next(numbers)))

        def node(status: Status) -> Destination:
            scp = stack.enter_context(StoreScp(status=status).listening())
            return DicomNode(
                host="127.0.0.1",
                port=scp.port,
                ae_title="RECEIVER",
                calling_ae_title="SENDER",
                on_notice=lambda _: None,
            )

        yield fake if request.param == "fake" else node


@pytest.fixture
def files(tmp_path: Path) -> tuple[Path, ...]:
    paths = tuple(tmp_path / f"{number}.dcm" for number in range(5))
    for number, path in enumerate(paths):
        ct_slice(instance_number=number + 1).save_as(path, enforce_file_format=True)
    return paths


def test_every_file_is_delivered_and_reported_once(make: Make, files: tuple[Path, ...]) -> None:
    told: list[Path] = []
    report = make(lambda _: 0x0000).deliver(files, on_delivered=told.append)
    assert report.delivered == tuple(told) == files
    assert report.rejected == ()


@pytest.mark.parametrize("status", [0xB000, 0xB006, 0xB007])
def test_a_warning_of_the_storage_service_means_stored(make: Make, files: tuple[Path, ...], status: int) -> None:
    told: list[Path] = []
    assert make(lambda _: status).deliver(files, on_delivered=told.append).delivered == files
    assert tuple(told) == files


@pytest.mark.parametrize("status", [0xA700, 0xA900, 0xC123, 0x0122, 0x0107, 0xB123])
def test_any_other_status_is_a_rejection(make: Make, files: tuple[Path, ...], status: int) -> None:
    told: list[Path] = []
    report = make(lambda number: status if number in (1, 3) else 0).deliver(files, on_delivered=told.append)
    assert [(rejection.path, rejection.status) for rejection in report.rejected] == [
        (files[1], status),
        (files[3], status),
    ]
    assert report.delivered == tuple(told) == (files[0], files[2], files[4])


def test_a_receiver_that_goes_away_is_unavailable_and_what_arrived_is_known(
    make: Make, files: tuple[Path, ...]
) -> None:
    told: list[Path] = []
    with pytest.raises(DestinationUnavailableError):
        make(lambda number: None if number == 2 else 0).deliver(files, on_delivered=told.append)
    assert tuple(told) == files[:2]


def test_what_is_not_dicom_is_not_sent(make: Make, files: tuple[Path, ...], tmp_path: Path) -> None:
    text = tmp_path / "report.txt"
    text.write_text("all fine")
    told: list[Path] = []
    report = make(lambda _: 0).deliver((files[0], text, files[1]), on_delivered=told.append)
    assert report.delivered == tuple(told) == files[:2]
    assert [rejection.path for rejection in report.rejected] == [text]
