from __future__ import annotations

import logging

import pytest
from pynetdicom import _config

from dicom_gateway.entity import configure_pynetdicom_logging, make_entity


@pytest.mark.parametrize(
    ("level", "expected"), [("none", logging.WARNING), ("standard", logging.INFO), ("debug", logging.DEBUG)]
)
def test_pynetdicom_tells_as_much_as_it_is_asked_to(level, expected):
    before = logging.getLogger("pynetdicom").level, _config.LOG_HANDLER_LEVEL
    try:
        configure_pynetdicom_logging(level)
        assert logging.getLogger("pynetdicom").level == expected
        assert (_config.LOG_HANDLER_LEVEL == "none") == (level == "none")
    finally:
        logging.getLogger("pynetdicom").setLevel(before[0])
        _config.LOG_HANDLER_LEVEL = before[1]


def test_a_scanner_may_pause_between_messages():
    assert make_entity("STORESCP").network_timeout >= 300
