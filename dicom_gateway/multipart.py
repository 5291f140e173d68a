"""A multipart body, piece by piece as it comes, of whatever size (RFC 2046 5.1.1). Pure, and made for hostile bytes.

Parsers that there are expect the forms of browsers, and refuse parts without a Content-Disposition; those of
``multipart/related`` (RFC 2387) have none.
"""

from __future__ import annotations

import enum
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Final

_LONGEST_HEADERS_BYTES: Final = 16 * 1024
_LONGEST_PADDING_BYTES: Final = 256
_MOST_PARTS: Final = 200_000
_BOUNDARY: Final = re.compile(r"[0-9A-Za-z'()+_,\-./:=? ]{0,69}[0-9A-Za-z'()+_,\-./:=?]\Z")
_PADDING: Final = b" \t"
_LINE_END: Final = b"\r\n"
_BLANK_LINE: Final = b"\r\n\r\n"


class MalformedError(ValueError):
    """The body is no multipart body. The message quotes nothing of it."""


@dataclass(frozen=True, slots=True)
class PartBegins:
    """``headers`` are by their names in lower case."""

    headers: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class PartContent:
    """The next bytes of the part that began last; never empty."""

    content: memoryview


@dataclass(frozen=True, slots=True)
class PartEnds:
    """The part that began last is whole."""


Event = PartBegins | PartContent | PartEnds


class _Place(enum.Enum):
    PREAMBLE = enum.auto()
    HEADERS = enum.auto()
    CONTENT = enum.auto()
    EPILOGUE = enum.auto()


class MultipartParser:
    """Takes a body in pieces. Keeps no more of it than the boundary, or the headers of a part, are long.

    Raises ``MalformedError``, here where ``boundary`` cannot be one.
    """

    def __init__(self, boundary: str) -> None:
        if _BOUNDARY.match(boundary) is None:
            raise MalformedError("the boundary is none")
        self._delimiter = b"\r\n--" + boundary.encode("ascii")
        self._place = _Place.PREAMBLE
        # The first delimiter may be the very first line.
        self._rest = _LINE_END
        self._part_count = 0

    def feed(self, piece: bytes) -> Iterator[Event]:
        """Yield what comes with a piece. Has to be used up before the next one. Raises ``MalformedError``."""
        data, at = self._rest + piece, 0
        self._rest = b""
        while at < len(data) and self._place is not _Place.EPILOGUE:
            if self._place is _Place.HEADERS:
                end = data.find(_BLANK_LINE, at)
                if (end if end >= 0 else len(data)) - at > _LONGEST_HEADERS_BYTES:
                    raise MalformedError("the headers of a part are too long")
                if end < 0:
                    self._rest = data[at:]
                    return
                self._begin_part()
                yield PartBegins(_headers(data[at:end]))
                at = end + len(_BLANK_LINE)
                continue
            content_end, at, is_delimiter = self._look_for_delimiter(data, at)
            if self._place is _Place.CONTENT and content_end[1] > content_end[0]:
                yield PartContent(memoryview(data)[content_end[0] : content_end[1]])
            if not is_delimiter:
                self._rest = data[at:]
                return
            if self._place is _Place.CONTENT:
                yield PartEnds()
            self._place, at = self._after_delimiter(data, at)

    def finish(self) -> None:
        """Take note that there is no more. Raises ``MalformedError`` where there should be."""
        if self._place is not _Place.EPILOGUE:
            raise MalformedError("the body ends before its last boundary")
        if not self._part_count:
            raise MalformedError("the body has no part")

    def _begin_part(self) -> None:
        self._place = _Place.CONTENT
        self._part_count += 1
        if self._part_count > _MOST_PARTS:
            raise MalformedError(f"the body has more than {_MOST_PARTS} parts")

    def _look_for_delimiter(self, data: bytes, at: int) -> tuple[tuple[int, int], int, bool]:
        """Return from where to where there is content, where to go on, and whether a delimiter ends there."""
        begin, search = at, at
        while True:
            found = data.find(self._delimiter, search)
            if found < 0:
                # What may be the beginning of a delimiter waits for the rest of it.
                end = max(begin, len(data) - len(self._delimiter) + 1)
                return (begin, end), end, False
            behind = found + len(self._delimiter)
            line = data[behind : behind + _LONGEST_PADDING_BYTES + 2]
            padding = len(line) - len(line.lstrip(_PADDING))
            ending = line[padding : padding + 2]
            if ending == _LINE_END or line[:2] == b"--":
                return (begin, found), behind, True
            if len(ending) < 2 and padding <= _LONGEST_PADDING_BYTES and (_LINE_END.startswith(ending) or line == b"-"):
                return (begin, found), found, False
            search = found + 2

    def _after_delimiter(self, data: bytes, at: int) -> tuple[_Place, int]:
        if data[at : at + 2] == b"--":
            return _Place.EPILOGUE, len(data)
        # The end of this line is left: a part without headers has its blank line right after it.
        return _Place.HEADERS, data.index(_LINE_END, at)


def _headers(block: bytes) -> Mapping[str, str]:
    headers = {}
    for line in block.split(_LINE_END):
        name, colon, value = line.partition(b":")
        if colon:
            headers[name.strip().lower().decode("latin-1")] = value.strip().decode("latin-1")
    return headers
