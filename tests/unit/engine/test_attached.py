from __future__ import annotations

import socket

import pytest

from flows_engine.attached import frames


def frame(stream: int, data: bytes) -> bytes:
    return bytes([stream, 0, 0, 0]) + len(data).to_bytes(4) + data


def read(*pieces: bytes) -> list[tuple[bytes | None, bytes | None]]:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        for piece in pieces:
            theirs.sendall(piece)
        theirs.shutdown(socket.SHUT_WR)
        return list(frames(ours))


def test_each_stream_gets_its_own() -> None:
    assert read(frame(1, b"out") + frame(2, b"err"), frame(1, b"more")) == [
        (b"out", None),
        (None, b"err"),
        (b"more", None),
    ]


def test_an_empty_frame_is_not_the_end() -> None:
    assert read(frame(1, b"") + frame(1, b"x")) == [(b"x", None)]


@pytest.mark.parametrize("cut", [0, 3, 8, 10])
def test_a_connection_that_is_cut_ends_it(cut: int) -> None:
    assert b"".join(out or b"" for out, _ in read(frame(1, b"whole")[:cut])) == b"whole"[: max(0, cut - 8)]


def test_a_long_frame_comes_in_parts() -> None:
    parts = read(frame(2, b"x" * 150_000))
    assert len(parts) > 1
    assert b"".join(error or b"" for _, error in parts) == b"x" * 150_000
