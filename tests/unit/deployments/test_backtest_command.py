from __future__ import annotations

import pytest

from dicom_gateway.ledger import Decision, ReprocessedRun
from tests.factories import leaked_canaries

CT_ONLY = "name: New\ntriggers: [{Modality: CT}]\nmodels: [{docker_kwargs: {image: hello-world}}]\n"


@pytest.fixture
def new_flow(tmp_path):
    """A definition that nobody has deployed."""
    path = tmp_path / "new.yaml"
    path.write_text(CT_ONLY)
    return path


@pytest.fixture
def studies(ledger, store_study):
    """Two CTs, of which one ran under the same name and one is held, and three MRs."""
    ran, held = store_study("0001"), store_study("0002")
    ledger.reprocessed(ReprocessedRun(flow="New", flow_run_id="r", request_id="q"), study_id=ran.study_id)
    ledger.decide(held.study_id, Decision(outcome="held", reason="x"))
    for number in ("0003", "0004", "0005"):
        store_study(number, modality="MR")
    return [ran.study_id, held.study_id]


def test_what_would_have_matched_is_told_in_counts_with_reasons_and_ids(dicomflow, new_flow, studies):
    done = dicomflow("backtest", str(new_flow))

    assert (done.returncode, done.stderr) == (0, "")
    assert [line.strip() for line in done.stdout.splitlines()] == [
        "5 studies",
        "2 matched   1 of them ran under the name New before   1 of them are held",
        "3 not matched",
        "3  Modality: no instance matches 'CT'",
        "",
        "matched:",
        *studies,
    ]
    assert leaked_canaries(done.stdout) == []


def test_files_are_looked_for_only_where_all_else_matches(dicomflow, new_flow, studies):
    new_flow.write_text(CT_ONLY.replace("Modality: CT", "Modality: CT, ReferencedStudySequence.Modality: CT"))
    lines = [line.strip() for line in dicomflow("backtest", str(new_flow)).stdout.splitlines()]
    assert "3  Modality: no instance matches 'CT'" in lines
    assert lines[-2:] == [
        "2 undecided",
        "2  ReferencedStudySequence.Modality: the files of the study are not those that were received",
    ]


def test_only_so_many_ids_are_printed(dicomflow, new_flow, studies):
    lines = dicomflow("backtest", str(new_flow), "--limit", "1").stdout.splitlines()
    assert lines[-2:] == [studies[0], "and 1 more; --limit shows them"]


def test_only_studies_of_the_span_are_tested(dicomflow, new_flow, studies):
    assert "      0 studies" in dicomflow("backtest", str(new_flow), "--since", "30d").stdout
    assert "      5 studies" in dicomflow("backtest", str(new_flow), "--since", "2024-05-06", "--until", "1d").stdout


def test_studies_whose_files_are_gone_are_counted(dicomflow, new_flow, studies, site):
    (site.data_dir / "studies" / studies[0] / "study.json").unlink()
    assert "      1 whose files are gone or damaged" in dicomflow("backtest", str(new_flow)).stdout


def test_a_bad_definition_is_told_as_check_does(dicomflow, new_flow, studies):
    new_flow.write_text(f"priorty: 4\n{CT_ONLY}")

    done, checked = dicomflow("backtest", str(new_flow)), dicomflow("check", str(new_flow))

    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == f"dicomflow: {checked.stderr}"


def test_a_moment_that_is_none_is_told(dicomflow, new_flow, studies):
    done = dicomflow("backtest", str(new_flow), "--since", "soon")
    assert done.returncode == 1
    assert done.stderr.startswith("dicomflow: --since: is no moment; write 12h or 30d")


def test_a_site_that_received_nothing_says_so(dicomflow, new_flow, site):
    done = dicomflow("backtest", str(new_flow))
    assert done.returncode == 1
    assert done.stderr == f"dicomflow: no study was received yet in {site.data_dir}\n"


def test_no_run_is_asked_for(dicomflow, new_flow, studies, ledger):
    dicomflow("backtest", str(new_flow))
    assert [run for study in ledger.studies() for run in study.runs] == []
