"""What is told before Prefect is asked; the rest is tried on a real server."""

from __future__ import annotations

import pytest

from dicom_gateway.uid_key import make_uid_key
from tests.factories import CANARY_NAME, leaked_canaries

NOWHERE = {"PREFECT_API_URL": "http://127.0.0.1:9/api", "PREFECT_CLIENT_MAX_RETRIES": "0"}


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ((), "neither a study nor a span of time is given"),
        (("0193e4c2-7a54", "--since", "2d"), "study and since or until are both given"),
        (("--since", "soon"), "since: is no moment; write 12h or 30d"),
        (("0193e4c2-7a54", "--receptions", "some"), "receptions: is neither newest nor all"),
        (("0193e4c2-7a54", "--note", "a\nb"), "note: is not one line"),
        (("0193e4c2-7a54-7cc3",), "there is no study 0193e4c2-7a54-7cc3; `dicomflow studies` lists"),
        (("1.2.3",), "no study of this StudyInstanceUID was received"),
    ],
)
def test_what_cannot_be_meant_is_told_before_anything_is_asked_for(dicomflow, ledger, arguments, told):
    done = dicomflow("reprocess", *arguments, **NOWHERE)

    assert done.returncode == 1
    assert done.stderr.startswith(f"dicomflow: {told}")
    assert done.stdout == ""


def test_a_patients_name_in_place_of_an_id_is_not_repeated(dicomflow, ledger):
    done = dicomflow("reprocess", CANARY_NAME, **NOWHERE)
    assert done.returncode == 1
    assert leaked_canaries(done.stdout + done.stderr) == []


def test_a_uid_can_be_looked_up_only_where_the_ledger_is(dicomflow, site):
    done = dicomflow("reprocess", "1.2.3", **NOWHERE)
    assert done.stderr.startswith(
        f"dicomflow: DATA_DIR: {site.data_dir} has no ledger to look a StudyInstanceUID up in"
    )


def test_a_server_that_does_not_answer_is_told_in_one_line(dicomflow_process, site, ledger, store_study):
    make_uid_key(site.data_dir)
    done = dicomflow_process("reprocess", store_study().study_id, **NOWHERE)
    assert done.returncode == 1
    assert done.stderr.startswith("dicomflow: no Prefect server answers at http://127.0.0.1:9/api")
