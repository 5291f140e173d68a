from __future__ import annotations

import itertools

from hypothesis import given
from hypothesis import strategies as st

from flows_engine.log_lines import MAX_LINE_BYTES, LogLines


def _lines(*chunks: bytes, max_total_bytes: int = 10**7) -> tuple[list[str], tuple[str, ...]]:
    log = LogLines(max_total_bytes=max_total_bytes)
    lines = [line for chunk in chunks for line in log.feed(chunk)]
    return [*lines, *log.end()], log.tail


def test_every_kind_of_line_end() -> None:
    assert _lines(b"a\nb\r\nc\rd")[0] == ["a", "b", "c", "d"]


def test_an_empty_line_is_a_line() -> None:
    assert _lines(b"\n\na\n")[0] == ["", "", "a"]


def test_a_line_end_in_two_chunks_is_one_line_end() -> None:
    assert _lines(b"a\r", b"\nb")[0] == ["a", "b"]


def test_a_character_in_two_chunks_is_one_character() -> None:
    assert _lines("ü".encode()[:1], "ü".encode()[1:])[0] == ["ü"]


def test_what_is_not_utf8_is_replaced_and_control_characters_are_escaped() -> None:
    assert _lines(b"\xff\x1b[31m\ttab \x00 \xe2\x80\xae")[0] == ["\ufffd\\x1b[31m\ttab \\x00 \\u202e"]


def test_a_long_line_is_cut_and_says_so_and_the_next_is_whole() -> None:
    lines, _ = _lines(b"x" * (MAX_LINE_BYTES + 10), b"y" * 100_000 + b"\nnext\n")
    assert len(lines) == 2
    assert lines[0].startswith("x" * MAX_LINE_BYTES)
    assert "cut" in lines[0]
    assert lines[1] == "next"


def test_a_long_log_is_left_out_and_says_so_once_and_keeps_its_last_lines() -> None:
    lines, tail = _lines(*[b"chatter\n" * 100] * 50, b"the reason\n", max_total_bytes=2000)
    assert len(lines) < 400
    assert sum("left out" in line for line in lines) == 1
    assert tail[-1] == "the reason"


@given(st.binary(max_size=400), st.lists(st.integers(0, 400), max_size=6))
def test_lines_do_not_depend_on_the_chunks(data: bytes, cuts: list[int]) -> None:
    places = [0, *sorted(cut for cut in cuts if cut <= len(data)), len(data)]
    chunks = [data[a:b] for a, b in itertools.pairwise(places)]
    assert _lines(*chunks) == _lines(data)


@given(st.binary(max_size=60_000))
def test_no_line_holds_a_control_character(data: bytes) -> None:
    assert not [c for line in _lines(data)[0] for c in line if ord(c) < 0x20 and c != "\t"]


def test_streams_do_not_break_each_others_lines() -> None:
    log = LogLines()
    assert log.feed(b"half", stream=0) == []
    assert log.feed(b"whole\nrest", stream=1) == ["whole"]
    assert log.feed(b"-line\n", stream=0) == ["half-line"]
    assert log.end() == ["rest"]
    assert log.tail == ("whole", "half-line", "rest")
