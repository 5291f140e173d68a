from __future__ import annotations

import errno
import os
from datetime import UTC, datetime
from pathlib import Path

import pytest

from flows_engine.errors import NoSpaceError, WorkspaceError
from flows_engine.run_record import (
    Amount,
    DeliveryRecord,
    RunRecord,
    StepRecord,
    as_markdown,
    read_records,
    write_record,
)

MOMENT = datetime(2026, 5, 6, 7, 8, 9, tzinfo=UTC)
STEP = StepRecord(
    model=1,
    image="team/model:1.2",
    image_digest="team/model@sha256:0123456789abcdef",
    gpus=("0",),
    static_digests={"Weights.tar": "ab" * 32, "Folder": None},
    engine_version="28.2",
    started_at=MOMENT,
    duration_seconds=12.345,
    exit_code=0,
    peak_memory_bytes=3 * 2**20,
    input=Amount(files=100, bytes=50 * 2**20),
    output=Amount(files=1, bytes=2**19),
)
RUN = RunRecord(
    run_id="run",
    study_id="study",
    flow="A_flow | of *mine*",
    version="1.0",
    definition_digest="cd" * 32,
    worker_host="ws1",
    ended_at=MOMENT,
    state="Completed",
    steps=(STEP,),
    deliveries=(DeliveryRecord(destination="PACS at pacs:104", instances=7),),
)


def test_what_is_written_is_read_again(tmp_path: Path) -> None:
    write_record(STEP, tmp_path / "new" / "record.json")
    assert read_records(StepRecord, [tmp_path / "new" / "record.json"]) == (STEP,)
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["record.json"]
    write_record(RUN, tmp_path / "run.json")
    assert RunRecord.model_validate_json((tmp_path / "run.json").read_text()) == RUN


def test_what_is_not_there_or_damaged_is_left_out(tmp_path: Path) -> None:
    write_record(STEP, tmp_path / "1.json")
    (tmp_path / "2.json").write_text("{")
    (tmp_path / "3.json").write_bytes(b"\xff\xfe")
    assert read_records(StepRecord, [tmp_path / f"{number}.json" for number in range(5)]) == (STEP,)


@pytest.mark.parametrize(("number", "kind"), [(errno.ENOSPC, NoSpaceError), (errno.EROFS, WorkspaceError)])
def test_what_cannot_be_written_says_why(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, kind: type[Exception]
) -> None:
    def refuse(_: int) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "fsync", refuse)
    with pytest.raises(kind, match=r"run\.json cannot be written"):
        write_record(RUN, tmp_path / "run.json")
    assert not (tmp_path / "run.json").exists()


def test_a_person_reads_a_table_in_which_nothing_is_a_mark_by_chance() -> None:
    text = as_markdown(RUN)
    assert text.startswith("**A\\_flow \\| of \\*mine\\*** 1.0\n")
    assert (
        "| 1 | `team/model:1.2` `0123456789ab` | 0 | 12.3 | 3 MiB | 100 files, 50.0 MiB | 1 files, 0.5 MiB | 0 |"
        in text
    )
    assert "| PACS at pacs:104 | 7 |" in text
    assert f"| Weights.tar | {'ab' * 32} |\n" in text + "\n"
    assert "| Folder | a folder |" in text
