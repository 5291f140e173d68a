from __future__ import annotations

import socket
import stat

import pytest

from dicom_gateway.errors import StartError
from dicom_gateway.ledger import Ledger
from dicom_gateway.uid_key import find_uid_key
from dicom_gateway.wiring import LEDGER_NAME, build_gateway, open_ledger
from flows_engine.handoff.site_settings import SiteSettings
from flows_engine.handoff.study_store import Fingerprint, TagColumn
from tests.fakes.definitions import FakeDefinitions
from tests.fakes.run_trigger import FakeRunTrigger
from tests.services import wait_until


def build(folder, **settings):
    return build_gateway(
        SiteSettings(data_dir=folder, **{"ae_port": 0, **settings}), FakeRunTrigger(), FakeDefinitions()
    )


def test_a_gateway_starts_on_a_folder_that_is_not_there_yet(tmp_path):
    gateway = build(tmp_path / "new" / "data")
    gateway.start()
    try:
        with socket.create_connection(("127.0.0.1", gateway.port), timeout=2):
            pass
        for name in ("spool", "studies"):
            assert stat.S_IMODE((tmp_path / "new" / "data" / name).stat().st_mode) == 0o700
        assert gateway.ledger.studies() == ()
    finally:
        gateway.stop(grace_seconds=0)


def test_a_second_gateway_on_the_same_folder_is_refused(tmp_path):
    gateway = build(tmp_path)
    with pytest.raises(StartError, match="DATA_DIR: another gateway"):
        build(tmp_path)
    gateway.start()
    gateway.stop(grace_seconds=0)
    again = build(tmp_path)
    again.start()
    again.stop(grace_seconds=0)


def test_a_port_in_use_leaves_the_folder_free(tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as other:
        gateway = build(tmp_path, ae_port=other.getsockname()[1])
        with pytest.raises(StartError, match="AE_PORT"):
            gateway.start()
    again = build(tmp_path)
    again.start()
    again.stop(grace_seconds=0)


def test_an_unknown_keyword_is_refused_before_anything_is_made(tmp_path):
    with pytest.raises((StartError, ValueError), match="NoSuchKeyword"):
        build(tmp_path / "data", tar_subdir=("NoSuchKeyword",))
    assert list(tmp_path.iterdir()) == []


def test_a_ledger_that_is_none_is_named(tmp_path):
    (tmp_path / "ledger.sqlite").write_bytes(b"no database" * 1000)
    with pytest.raises(StartError, match=r"ledger\.sqlite cannot be opened"):
        open_ledger(tmp_path)
    with pytest.raises(StartError):
        build(tmp_path)


def test_a_data_dir_that_is_a_file_is_named(tmp_path):
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(StartError, match="DATA_DIR"):
        build(tmp_path / "file")


def test_studies_that_an_earlier_version_received_are_found_by_their_uid(tmp_path, make_record):
    column = TagColumn(values=(("1.2.3",),), index=(0, 0, 0))
    record = make_record().model_copy(
        update={"fingerprint": Fingerprint(instance_count=3, columns={"0020000D": column})}
    )
    folder = tmp_path / "studies" / record.study_id
    folder.mkdir(parents=True)
    (folder / "study.json").write_text(record.model_dump_json())
    ledger = Ledger(tmp_path / LEDGER_NAME)
    ledger.add(record)
    ledger.close()

    gateway = build(tmp_path)
    gateway.start()
    try:
        uid_hash = find_uid_key(tmp_path).hash_of("1.2.3")
        wait_until(lambda: gateway.ledger.studies_of(uid_hash) == (record.study_id,), seconds=10, what="it is found")
    finally:
        gateway.stop(grace_seconds=0)
    assert b"1.2.3" not in (tmp_path / LEDGER_NAME).read_bytes()
