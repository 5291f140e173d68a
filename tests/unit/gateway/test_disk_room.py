from __future__ import annotations

import pytest

from dicom_gateway.disk_room import DiskRoom, has_room


@pytest.mark.parametrize(
    ("free", "reserve", "watermark", "expected"),
    [
        (500, 0, 100.0, True),
        (500, 499, 100.0, True),
        (500, 500, 100.0, False),
        (100, 0, 90.0, True),
        (99, 0, 90.0, False),
        (0, 0, 100.0, False),
    ],
)
def test_room_is_what_is_neither_reserved_nor_above_the_watermark(free, reserve, watermark, expected):
    room = has_room(free_bytes=free, total_bytes=1000, reserve_bytes=reserve, watermark_percent=watermark)
    assert room is expected


def test_the_disk_is_asked_each_time(tmp_path):
    assert DiskRoom(folder=tmp_path).is_left()
    assert not DiskRoom(folder=tmp_path, reserve_bytes=2**60).is_left()
    assert DiskRoom(folder=tmp_path / "gone", reserve_bytes=2**60).is_left()
