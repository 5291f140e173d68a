from __future__ import annotations

from dicom_gateway.reprocess_result import MOST_ROWS, ReprocessResult, Row


def result(*rows: Row, studies: int = 1, in_bulk: bool = False, dry_run: bool = False) -> ReprocessResult:
    made = ReprocessResult(in_bulk=in_bulk, dry_run=dry_run)
    made.studies = studies
    for row in rows:
        made.add(row)
    return made


def made(study_id: str = "s1", flow: str = "A", run_id: str = "r1") -> Row:
    return Row(study_id=study_id, what="made", flow=flow, run_id=run_id)


GONE = Row(study_id="s9", what="not processed", reason="the files of study s9 are not in /data/studies")


def test_the_runs_of_one_study_are_named():
    told = result(made(), made(flow="B", run_id="r2"))
    assert told.message() == "made A as run r1, B as run r2"
    assert not told.failed


def test_of_many_runs_of_one_study_some_are_named():
    told = result(*(made(flow=f"F{number}") for number in range(5)))
    assert told.message() == "made F0 as run r1, F1 as run r1, F2 as run r1, and 2 more"


def test_a_run_that_is_under_way_is_named_and_is_no_failure():
    row = Row(study_id="s1", what="under way", flow="A", run_id="r1", reason="which is Running")
    told = result(row)
    assert told.message() == "already under way: A as run r1, which is Running"
    assert not told.failed


def test_a_study_that_nothing_matches_is_told_where_the_reasons_are():
    told = result()
    told.without_match()
    assert told.message() == "no run was made: no flow matches; `dicomflow explain` says why"
    assert not told.failed


def test_a_dry_run_says_so_for_one_study_and_for_many():
    row = Row(study_id="s1", what="would run", flow="A")
    assert result(row, dry_run=True).message() == "dry run: A would run"
    bulk = result(row, studies=3, in_bulk=True, dry_run=True)
    assert bulk.message() == "dry run: 1 run would be made for 1 of 3 studies"
    assert bulk.made == 0


def test_a_span_of_time_is_told_in_counts():
    told = result(made("s1"), made("s1", "B"), made("s2"), GONE, studies=9, in_bulk=True)
    told.held, told.not_decided = 4, 1
    for _ in range(6):
        told.without_match()
    assert told.message() == (
        "3 runs made for 2 of 9 studies; 6 studies match no flow; passed over: 4 held, 1 not decided on yet; "
        "not processed: the files of study s9 are not in /data/studies"
    )
    assert told.made == 3


def test_what_is_wrong_with_one_of_many_fails_nothing():
    assert not result(made(), GONE, in_bulk=True).failed
    assert result(GONE, in_bulk=True).failed


def test_what_is_wrong_with_a_study_that_was_named_fails_the_request():
    assert result(GONE).failed
    assert result(made(), GONE).failed
    assert result(Row(study_id="s1", what="refused", flow="A", reason="x")).failed
    undecided = result(Row(study_id="s1", what="undecided", flow="A", reason="Modality: takes too long"))
    assert undecided.failed
    assert undecided.message() == "undecided: A (Modality: takes too long)"


def test_other_receptions_of_a_uid_are_named():
    told = result(made())
    told.only_newest_of(("s0", "s00"))
    assert told.message() == "made A as run r1; this is the newest of 3 receptions; others are s0, s00"
    alone = result(made())
    alone.only_newest_of(())
    assert alone.message() == "made A as run r1"


def test_the_table_has_a_row_for_each_run_with_what_does_not_match_behind():
    other = Row(study_id="s1", what="does not match", flow="B", reason="Modality: none matches")
    told = result(other, made())
    assert told.table() == [
        {"study": "s1", "flow": "A", "what": "made", "run": "r1", "reason": ""},
        {"study": "s1", "flow": "B", "what": "does not match", "run": "", "reason": "Modality: none matches"},
    ]
    assert told.row_count == 2


def test_the_table_does_not_grow_with_the_studies():
    told = result(*(made(f"s{number}") for number in range(MOST_ROWS + 7)), in_bulk=True, studies=MOST_ROWS + 7)
    assert len(told.table()) == MOST_ROWS
    assert told.row_count == MOST_ROWS + 7
    assert told.message() == f"{MOST_ROWS + 7} runs made for {MOST_ROWS + 7} of {MOST_ROWS + 7} studies"
    assert len(told._rows) == MOST_ROWS


def test_a_message_is_one_line():
    assert len(result(made(), GONE).message().splitlines()) == 1
