from __future__ import annotations

import logging

from deployments.service_log import LineWithIds


def _line(message: str, **values: str) -> str:
    record = logging.makeLogRecord({"levelname": "INFO", "msg": message, "args": (), **values})
    return LineWithIds("%(levelname)s: %(message)s").format(record)


def test_the_ids_of_a_record_stand_behind_its_sentence() -> None:
    assert _line("a run was created", study_id="0193", flow_run_id="77aa", action="trigger") == (
        "INFO: a run was created study_id=0193 flow_run_id=77aa"
    )


def test_a_record_without_ids_is_its_sentence() -> None:
    assert _line("receiving") == "INFO: receiving"


def test_a_traceback_comes_after_the_ids() -> None:
    try:
        raise ValueError("no room")
    except ValueError as error:
        record = logging.makeLogRecord(
            {"msg": "postponed", "study_id": "0193", "exc_info": (type(error), error, error.__traceback__)}
        )
    lines = LineWithIds("%(message)s").format(record).splitlines()
    assert lines[0] == "postponed study_id=0193"
    assert lines[-1] == "ValueError: no room"
