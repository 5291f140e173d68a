"""The sender, with DCMTK and misbehaving peers as receivers."""

from __future__ import annotations

import contextlib
import os
import socket
import struct
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from pydicom import dcmread
from pydicom.uid import ExplicitVRLittleEndian, JPEGBaseline8Bit
from pynetdicom import AllStoragePresentationContexts
from pynetdicom.presentation import build_context

from flows_engine.destinations.dicom_node import DicomNode
from flows_engine.destinations.part10_head import read_head
from flows_engine.destinations.store_association import Patience
from flows_engine.errors import DestinationUnavailableError
from tests.factories import ct_slice
from tests.fakes.store_scp import StoreScp
from tests.services import unused_port, wait_until


def _node(port: int, *, host: str = "127.0.0.1", notices: list[str] | None = None, **patience: float) -> DicomNode:
    return DicomNode(
        host=host,
        port=port,
        ae_title="RECEIVER",
        calling_ae_title="SENDER",
        on_notice=(notices if notices is not None else []).append,
        patience=Patience(**patience),
    )


def _files(folder: Path, count: int, **values: object) -> tuple[Path, ...]:
    folder.mkdir(exist_ok=True)
    paths = tuple(folder / f"{number:05}.dcm" for number in range(count))
    for number, path in enumerate(paths):
        ct_slice(instance_number=number, **values).save_as(path, enforce_file_format=True)
    return paths


def _data_set(path: Path) -> bytes:
    return path.read_bytes()[read_head(path).data_set_offset :]


def _no_one(_: Path) -> None:
    return None


@contextlib.contextmanager
def _storescp(folder: Path, *options: str, **environment: str) -> Iterator[int]:
    port = unused_port()
    folder.mkdir()
    process = subprocess.Popen(
        ["storescp", *options, "--output-directory", str(folder), str(port)],
        env={**os.environ, "TCP_NODELAY": "1", **environment},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )

    def listens() -> bool:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
            return True
        return False

    try:
        wait_until(listens, seconds=20, what="storescp listens")
        yield port
    finally:
        process.kill()
        process.wait()


@contextlib.contextmanager
def _peer(answer: Callable[[socket.socket], None]) -> Iterator[int]:
    """Listen, and let ``answer`` treat the one connection that comes."""
    with socket.create_server(("127.0.0.1", 0)) as server:

        def serve() -> None:
            with contextlib.suppress(OSError):
                connection, _ = server.accept()
                with connection:
                    answer(connection)

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        yield server.getsockname()[1]


@pytest.mark.dcmtk
def test_dcmtk_stores_every_data_set_byte_for_byte(tmp_path: Path) -> None:
    files = (
        *_files(tmp_path / "small", 20),
        *_files(tmp_path / "large", 3, rows=700, columns=600),
    )
    received = tmp_path / "received"
    with _storescp(received, "--bit-preserving") as port:
        report = _node(port).deliver(files, on_delivered=_no_one)
    assert report.delivered == files
    arrived = {path.name.split(".", 1)[1]: path for path in received.iterdir()}
    assert len(arrived) == len(files)
    for file in files:
        assert _data_set(arrived[str(read_head(file).sop_instance_uid)]) == _data_set(file)


@pytest.mark.dcmtk
def test_ten_thousand_instances_lose_no_response(tmp_path: Path) -> None:
    files = _files(tmp_path / "files", 500) * 20
    told: list[Path] = []
    with _storescp(tmp_path / "received", "--ignore") as port:
        report = _node(port, response_seconds=10).deliver(files, on_delivered=told.append)
    assert len(report.delivered) == len(told) == 10_000


@pytest.mark.dcmtk
def test_a_receiver_that_delays_its_answers_by_nagles_algorithm_is_not_waited_for(tmp_path: Path) -> None:
    files = _files(tmp_path / "files", 100)
    with _storescp(tmp_path / "received", "--ignore", TCP_NODELAY="0") as port:
        start = time.perf_counter()
        _node(port).deliver(files, on_delivered=_no_one)
        assert time.perf_counter() - start < 100 * 0.03


@pytest.mark.dcmtk
def test_dcmtk_that_refuses_every_association(tmp_path: Path) -> None:
    files = _files(tmp_path / "files", 1)
    with (
        _storescp(tmp_path / "received", "--refuse") as port,
        pytest.raises(
            DestinationUnavailableError, match=r"RECEIVER@127.0.0.1:[0-9]+ rejected the association from SENDER"
        ),
    ):
        _node(port).deliver(files, on_delivered=_no_one)


def test_an_ae_title_that_is_not_known_is_said(tmp_path: Path) -> None:
    with (
        StoreScp().listening(only_from="SOMEONE") as scp,
        pytest.raises(DestinationUnavailableError, match=r"(?i)calling AE title not recogni"),
    ):
        _node(scp.port).deliver(_files(tmp_path / "files", 1), on_delivered=_no_one)


def test_nobody_listens(tmp_path: Path) -> None:
    with pytest.raises(
        DestinationUnavailableError, match=r"RECEIVER@127.0.0.1:[0-9]+ cannot be reached: connection refused"
    ):
        _node(unused_port()).deliver(_files(tmp_path / "files", 1), on_delivered=_no_one)


def test_a_host_that_is_not_known(tmp_path: Path) -> None:
    with pytest.raises(DestinationUnavailableError, match="host name is not known"):
        _node(104, host="pacs.invalid").deliver(_files(tmp_path / "files", 1), on_delivered=_no_one)


def _reads_and_says(words: bytes) -> Callable[[socket.socket], None]:
    def answer(connection: socket.socket) -> None:
        connection.recv(65536)
        connection.sendall(words)
        connection.recv(65536)

    return answer


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (b"", "no answer in time|closed the connection"),
        (b"HTTP/1.1 400 Bad Request\r\n\r\n", "sent a PDU of"),
        (struct.pack(">BxL", 0x02, 4) + b"junk", "nonsense|closed"),
        (struct.pack(">BxL", 0x07, 4) + bytes(4), "aborted the association"),
        (struct.pack(">BxL", 0x03, 4) + b"\x00\x01\x01\x07", "rejected the association.*(?i:called AE title)"),
        (struct.pack(">BxL", 0x02, 0xFFFFFFFF), "PDU of 4294967295 bytes"),
    ],
)
def test_a_peer_that_speaks_no_dicom_ends_in_one_line(tmp_path: Path, words: bytes, reason: str) -> None:
    with _peer(_reads_and_says(words)) as port, pytest.raises(DestinationUnavailableError, match=reason) as caught:
        _node(port, association_seconds=1.0).deliver(_files(tmp_path / "files", 1), on_delivered=_no_one)
    assert "\n" not in str(caught.value)


def test_a_receiver_that_falls_silent_is_given_up_after_its_time(tmp_path: Path) -> None:
    files = _files(tmp_path / "files", 3)
    release = threading.Event()

    def status(number: int) -> int:
        if number == 1:
            release.wait(30)
        return 0

    told: list[Path] = []
    with StoreScp(status=status).listening() as scp:
        with pytest.raises(DestinationUnavailableError, match="no answer in time"):
            _node(scp.port, response_seconds=1.0).deliver(files, on_delivered=told.append)
        release.set()
    assert tuple(told) == files[:1]


def test_a_transfer_syntax_that_is_not_accepted_is_a_rejection_of_those_files(tmp_path: Path) -> None:
    plain = _files(tmp_path / "plain", 2)
    compressed = tmp_path / "compressed.dcm"
    dataset = dcmread(plain[0])
    dataset.file_meta.TransferSyntaxUID = JPEGBaseline8Bit
    del dataset.PixelData
    dataset.save_as(compressed, enforce_file_format=True)
    with StoreScp().listening() as scp:
        report = _node(scp.port).deliver((plain[0], compressed, plain[1]), on_delivered=_no_one)
    assert report.delivered == plain
    ((path, status, reason),) = [(r.path, r.status, r.reason) for r in report.rejected]
    assert (path, status) == (compressed, None)
    assert reason == "does not accept CT Image Storage in JPEG Baseline (Process 1)"


def test_what_is_sent_is_the_data_set_as_its_bytes_are(tmp_path: Path) -> None:
    files = _files(tmp_path / "files", 3, rows=100, columns=99)
    with StoreScp().listening() as scp:
        _node(scp.port).deliver(files, on_delivered=_no_one)
    assert scp.instances == [
        (read_head(file).sop_instance_uid, str(ExplicitVRLittleEndian), _data_set(file)) for file in files
    ]


def test_more_than_128_presentation_contexts_take_several_associations(tmp_path: Path) -> None:
    classes = [str(context.abstract_syntax) for context in AllStoragePresentationContexts[:140]]
    folder = tmp_path / "files"
    folder.mkdir()
    files = []
    for number, uid in enumerate(classes):
        files.append(folder / f"{number}.dcm")
        ct_slice(SOPClassUID=uid).save_as(files[-1], enforce_file_format=True)
    contexts = [build_context(uid, ExplicitVRLittleEndian) for uid in classes]
    with StoreScp().listening(*contexts) as scp:
        report = _node(scp.port).deliver(files, on_delivered=_no_one)
    assert (len(report.delivered), scp.associations) == (140, 2)


def test_warnings_are_counted_in_one_sentence_a_kind(tmp_path: Path) -> None:
    notices: list[str] = []
    with StoreScp(status=lambda number: 0xB000 if number else 0xB007).listening() as scp:
        _node(scp.port, notices=notices).deliver(_files(tmp_path / "files", 4), on_delivered=_no_one)
    assert [notice.partition(" stored ")[2] for notice in notices] == [
        "3 instances with warning 0xB000 (coercion of data elements)",
        "1 instances with warning 0xB007 (data set does not match SOP class)",
    ]


def test_a_caller_that_cannot_write_down_what_arrived_ends_the_delivery(tmp_path: Path) -> None:
    def full(_: Path) -> None:
        raise OSError("no space left")

    with StoreScp().listening() as scp, pytest.raises(OSError, match="no space left"):
        _node(scp.port).deliver(_files(tmp_path / "files", 3), on_delivered=full)
    assert len(scp.instances) == 1
