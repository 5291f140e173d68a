"""A container's raw output -> lines that are safe to log, bounded in length and in number. Pure."""

from __future__ import annotations

import re
from collections import deque
from typing import Final

MAX_LINE_BYTES: Final = 8 * 1024
MAX_TOTAL_BYTES: Final = 10 * 1024 * 1024
TAIL_LINES: Final = 20

_LATE_BYTES: Final = 64 * 1024
_LINE_END: Final = re.compile(rb"\r\n|\n|\r")
# What moves a cursor, colours a terminal or turns the reading direction: C0 without tab, DEL, C1, line separators,
# bidi.
_CONTROL: Final = {
    code: f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}"
    for code in (
        *(c for c in range(0x20) if c != 0x09),
        *range(0x7F, 0xA0),
        0x061C, 0x200E, 0x200F, *range(0x2028, 0x202F), *range(0x2066, 0x206A),
    )
}  # fmt: skip


class LogLines:
    """Cuts the streams of a container into lines, each stream by itself: its order is kept, and its lines stay whole.

    ``\\n``, ``\\r\\n`` and a lone ``\\r`` (progress bars) end a line. Bytes that are not UTF-8 become U+FFFD; control
    characters other than tab are escaped. A line of more than ``MAX_LINE_BYTES`` is cut and says so. After
    ``MAX_TOTAL_BYTES`` one line says that the rest is left out; ``tail`` still ends with the very last lines.
    """

    def __init__(self, *, max_total_bytes: int = MAX_TOTAL_BYTES) -> None:
        self._max_total_bytes = max_total_bytes
        self._total_bytes = 0
        self._streams: dict[int, _Stream] = {}
        self._late: dict[int, bytes] = {}
        self._tail: deque[str] = deque(maxlen=TAIL_LINES)

    @property
    def tail(self) -> tuple[str, ...]:
        """The last lines so far, oldest first; complete after ``end``."""
        return tuple(self._tail)

    def feed(self, chunk: bytes, *, stream: int = 0) -> list[str]:
        """Return the lines that ``chunk`` of a stream completes."""
        if self._total_bytes > self._max_total_bytes:
            self._late[stream] = (self._late.get(stream, b"") + chunk)[-_LATE_BYTES:]
            return []
        self._total_bytes += len(chunk)
        lines = self._streams.setdefault(stream, _Stream()).feed(chunk)
        self._tail.extend(lines)
        if self._total_bytes > self._max_total_bytes:
            lines.append(f"(the rest of this log is left out: it is longer than {self._max_total_bytes // 1024} KiB)")
        return lines

    def end(self) -> list[str]:
        """Return the last lines, those that had no line end. Nothing may be fed afterwards."""
        is_cut = self._total_bytes > self._max_total_bytes
        lines: list[str] = []
        for number, stream in sorted(self._streams.items()):
            lines += stream.feed(self._late.pop(number, b"")) + stream.end()
        for _, chunk in sorted(self._late.items()):
            stream = _Stream()
            lines += stream.feed(chunk) + stream.end()
        self._tail.extend(lines)
        return [] if is_cut else lines


class _Stream:
    def __init__(self) -> None:
        self._pending = b""
        self._skipping = False

    def feed(self, chunk: bytes) -> list[str]:
        data = self._pending + chunk
        # A carriage return at the very end may be half of a line end: it waits for the next byte.
        keep = data.endswith(b"\r")
        parts = _LINE_END.split(data[:-1] if keep else data)
        rest = parts.pop()
        lines: list[str] = []
        for part in parts:
            if self._skipping:
                self._skipping = False
            else:
                lines.append(_text(part) if len(part) <= MAX_LINE_BYTES else _cut(part))
        if not self._skipping and len(rest) > MAX_LINE_BYTES:
            lines.append(_cut(rest))
            self._skipping = True
        self._pending = (b"" if self._skipping else rest) + (b"\r" if keep else b"")
        return lines

    def end(self) -> list[str]:
        is_line = bool(self._pending) and not self._skipping
        return [_text(self._pending.removesuffix(b"\r"))] if is_line else []


def on_one_line(text: str) -> str:
    """Return a text as one line, its control characters escaped as in a log."""
    return " ".join(text.split()).translate(_CONTROL)


def _text(line: bytes) -> str:
    return line.decode("utf-8", errors="replace").translate(_CONTROL)


def _cut(line: bytes) -> str:
    return f"{_text(line[:MAX_LINE_BYTES])} (cut: the line is longer than {MAX_LINE_BYTES} bytes)"
