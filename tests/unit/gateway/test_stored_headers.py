from __future__ import annotations

from dicom_gateway.stored_headers import headers_below
from flows_engine.handoff.header import Header
from tests.fakes.instances import as_file, ct, received


def test_what_cannot_be_read_or_is_gone_hides_nothing_else(tmp_path):
    instances = [received(ct()) for _ in range(2)]
    for number, one in enumerate(instances):
        folder = tmp_path / str(number)
        folder.mkdir()
        (folder / f"{one.sop_instance_uid}.dcm").write_bytes(as_file(one))
    (tmp_path / "0" / "1.2.3.dcm").write_bytes(b"no DICOM")
    (tmp_path / "0" / "1.2.4.dcm").symlink_to(tmp_path / "gone")
    found = dict(headers_below(tmp_path))
    assert set(found) == {one.sop_instance_uid for one in instances}
    assert all(isinstance(header, Header) for header in found.values())
