from __future__ import annotations

import pytest

from dicom_gateway.data_dir_lock import DataDirLock
from dicom_gateway.errors import StartError


def test_the_second_is_refused_until_the_first_lets_go(tmp_path):
    first, second = DataDirLock(tmp_path), DataDirLock(tmp_path)
    first.acquire()
    with pytest.raises(StartError, match=f"another gateway is using {tmp_path}"):
        second.acquire()
    first.release()
    second.acquire()
    second.release()


def test_what_is_not_held_may_be_released(tmp_path):
    lock = DataDirLock(tmp_path)
    lock.release()
    lock.acquire()
    lock.release()
    lock.release()
