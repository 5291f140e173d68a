from __future__ import annotations

import pytest

from dicom_gateway.errors import RequestError
from dicom_gateway.study_lookup import find_studies
from dicom_gateway.uid_key import UidKey

KEY = UidKey(b"key")
UID = "1.2.3"


def test_a_study_id_is_that_study(ledger, make_record):
    ledger.add(make_record())
    assert find_studies(make_record().study_id, ledger=ledger, uid_key=None) == (make_record().study_id,)


def test_a_uid_is_every_study_that_has_it_the_newest_first(ledger, make_record):
    for number in ("0001", "0003", "0002"):
        ledger.add(make_record(number), uid_hashes={KEY.hash_of(UID)})
    found = find_studies(UID, ledger=ledger, uid_key=KEY)
    assert [study_id[-4:] for study_id in found] == ["0003", "0002", "0001"]


def test_an_unknown_study_id_is_told_with_the_way_out(ledger, make_record):
    study_id = make_record().study_id
    with pytest.raises(RequestError, match=f"there is no study {study_id}; `dicomflow studies` lists"):
        find_studies(study_id, ledger=ledger, uid_key=KEY)


@pytest.mark.parametrize("key", [KEY, None])
def test_an_unknown_uid_is_told_without_repeating_it(ledger, make_record, key):
    ledger.add(make_record(), uid_hashes={KEY.hash_of("1.2.4")})
    with pytest.raises(RequestError, match="no study of this StudyInstanceUID was received; ") as told:
        find_studies(UID, ledger=ledger, uid_key=key)
    assert UID not in str(told.value)
    assert "yet to read" not in str(told.value)


def test_studies_that_are_not_searchable_yet_are_counted(ledger, make_record):
    ledger.add(make_record())
    with pytest.raises(RequestError, match=r"\(1 of them cannot be found by UID: the gateway is yet to read"):
        find_studies(UID, ledger=ledger, uid_key=KEY)
