from __future__ import annotations

from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dicom_gateway.multipart import MalformedError, MultipartParser, PartBegins, PartContent, PartEnds

HEAD = b"Content-Type: application/dicom\r\n"


def body(*parts, boundary="b", headers=HEAD, preamble=b"", padding=b"", end=b"--\r\n"):
    line = b"--" + boundary.encode()
    content = b"".join(line + padding + b"\r\n" + headers + b"\r\n" + part + b"\r\n" for part in parts)
    return preamble + content + line + end


def parsed(*pieces, boundary="b"):
    """Return headers and content of each part that ended, and whether the body did."""
    parser, parts, content, headers = MultipartParser(boundary), [], b"", None
    for piece in pieces:
        for event in parser.feed(piece):
            if isinstance(event, PartBegins):
                headers, content = dict(event.headers), b""
            elif isinstance(event, PartContent):
                assert len(event.content)
                content += event.content
            else:
                assert isinstance(event, PartEnds)
                parts.append((headers, content))
    parser.finish()
    return parts


def test_parts_come_with_their_headers():
    assert parsed(body(b"one", b"two")) == [
        ({"content-type": "application/dicom"}, b"one"),
        ({"content-type": "application/dicom"}, b"two"),
    ]


@given(
    parts=st.lists(st.binary(max_size=40) | st.sampled_from([b"\r\n", b"\r\n-", b"\r\n--", b"--b", b"\r\n--bx", b"-"])),
    sizes=st.lists(st.integers(min_value=1, max_value=9), min_size=1),
    preamble=st.sampled_from([b"", b"\r\n", b"not for you\r\n"]),
    padding=st.sampled_from([b"", b" ", b"\t  "]),
    headers=st.sampled_from([b"", HEAD]),
)
def test_however_it_is_cut_the_same_parts_come(parts, sizes, preamble, padding, headers):
    # What reads as a delimiter would be one, wherever it stands.
    if not parts or any(
        ending in part for part in parts for ending in (b"\r\n--b\r\n", b"\r\n--b--", b"\r\n--b ", b"\r\n--b\t")
    ):
        return
    whole = body(*parts, preamble=preamble, headers=headers, padding=padding)
    pieces, at, turn = [], 0, 0
    while at < len(whole):
        size = sizes[turn % len(sizes)]
        pieces.append(whole[at : at + size])
        at, turn = at + size, turn + 1
    assert [content for _, content in parsed(*pieces)] == parts


@given(st.lists(st.binary(max_size=30) | st.sampled_from([b"--b\r\n", b"\r\n--b\r\n", b"\r\n\r\n", b"\r\n--b--"])))
def test_whatever_comes_it_is_parsed_or_malformed(pieces):
    with suppress(MalformedError):
        parsed(*pieces)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "before its last boundary"),
        (b"--b\r\n" + HEAD + b"\r\nhalf", "before its last boundary"),
        (b"--b\r\n" + HEAD + b"\r\nwhole\r\n--b", "before its last boundary"),
        (b"--b--\r\n", "no part"),
        (b"--b\n" + HEAD + b"\nlines of another kind\n--b--\n", "before its last boundary"),
        (b"--b\r\n" + b"X: y\r\n" * 10_000, "too long"),
        (b"--b\r\n" + b"X: y\r\n" * 10_000 + b"\r\n", "too long"),
    ],
)
def test_what_is_no_multipart_body_is_malformed(content, reason):
    with pytest.raises(MalformedError, match=reason):
        parsed(content)


@pytest.mark.parametrize("boundary", ["", "x" * 71, "a\r\nb", "é", "a ", 'a"b'])
def test_what_cannot_be_a_boundary_is_none(boundary):
    with pytest.raises(MalformedError):
        MultipartParser(boundary)


def test_what_begins_like_a_boundary_is_content():
    assert parsed(body(b"x\r\n--bb\r\ny")) == [({"content-type": "application/dicom"}, b"x\r\n--bb\r\ny")]


def test_no_more_is_kept_than_a_boundary_is_long():
    parser = MultipartParser("b" * 70)
    list(parser.feed(b"--" + b"b" * 70 + b"\r\n\r\n"))
    for _ in range(50):
        given_back = sum(len(event.content) for event in parser.feed(b"\r\n--" + b"b" * 10_000))
        assert given_back > 9_000
        assert len(parser._rest) < 400


def test_a_boundary_line_that_does_not_end_is_not_waited_for():
    parser = MultipartParser("b")
    list(parser.feed(b"--b\r\n\r\n"))
    for _ in range(10):
        list(parser.feed(b"\r\n--b" + b" " * 1000))
    assert len(parser._rest) < 400
