"""Studies that come in over HTTP, to a gateway as a whole."""

from __future__ import annotations

import base64
import contextlib
import logging
import os
import shutil
import signal
import socket
import subprocess
import time
from pathlib import Path

import httpx
import pytest
from pydicom import dcmread
from pydicom.uid import CTImageStorage, ExplicitVRBigEndian, ExplicitVRLittleEndian, ImplicitVRLittleEndian

from dicom_gateway.errors import StartError
from dicom_gateway.file_meta import file_meta
from dicom_gateway.wiring import build_gateway
from flows_engine.handoff.site_settings import SiteSettings
from flows_engine.handoff.study_store import StudyStore
from tests.fakes.definitions import FakeDefinitions, flow
from tests.fakes.instances import CANARIES, ct, encoded
from tests.fakes.run_trigger import FakeRunTrigger
from tests.fakes.stow_client import BOUNDARY, TOKEN, TYPE, body, dicom_file, post
from tests.services import wait_until
from tests.small_disk import small_disk

MIB = 1024 * 1024


class Site:
    """A running gateway and its folder."""

    def __init__(self, folder, **settings):
        self.folder = folder
        self.gateway = build_gateway(
            SiteSettings(
                **{
                    "data_dir": folder,
                    "ae_port": 0,
                    "stow_port": 0,
                    "stow_token": TOKEN,
                    "receiver_processes": 1,
                    "incomplete_seconds": 0,
                    "disk_reserve_bytes": 0,
                    **settings,
                }
            ),
            FakeRunTrigger(),
            FakeDefinitions(flow("CT", {"Modality": "CT"})),
        )
        self.gateway.start()
        self.port = self.gateway.stow_port
        self.store = StudyStore(folder / "studies")

    @property
    def pid(self):
        return self.gateway._stow._keeper.processes[0].pid

    def studies(self, count=1):
        def settled():
            studies = self.gateway.ledger.studies()
            return len(studies) == count and all(study.outcome != "received" for study in studies)

        wait_until(settled, seconds=20, what=f"{count} studies")
        return self.gateway.ledger.studies()

    def files(self, study):
        return sorted(self.store.input_folder(study.study_id).rglob("*.dcm"))


@pytest.fixture
def make_site(tmp_path):
    sites = []

    def make(folder=tmp_path / "data", **settings):
        sites.append(Site(folder, **settings))
        return sites[-1]

    yield make
    for site in sites:
        site.gateway.stop(grace_seconds=0)


@pytest.fixture
def site(make_site):
    return make_site()


def reasons(answer):
    """Return the failure reasons of an answer, by SOP Instance UID."""
    failed = answer.json().get("00081198", {}).get("Value", [])
    return {item["00081155"]["Value"][0]: item["00081197"]["Value"][0] for item in failed}


def test_a_study_is_stored_bit_for_bit_and_decided_on(site):
    syntaxes = (ExplicitVRLittleEndian, ImplicitVRLittleEndian, ExplicitVRBigEndian)
    sent = {syntax: ct(PixelData=os.urandom(100_000)) for syntax in syntaxes}
    answer = post(site.port, body(dicom_file(one, transfer_syntax_uid=syntax) for syntax, one in sent.items()))
    assert answer.status_code == 200, answer.text
    assert answer.headers["content-type"] == "application/dicom+json"
    stored = [item["00081155"]["Value"][0] for item in answer.json()["00081199"]["Value"]]
    assert stored == [one.SOPInstanceUID for one in sent.values()]
    (study,) = site.studies()
    assert (study.outcome, study.complete, study.sender) == ("triggered", True, "STOW@127.0.0.1")
    for syntax, one in sent.items():
        content = (site.store.input_folder(study.study_id) / f"{one.SOPInstanceUID}.dcm").read_bytes()
        head = file_meta(sop_class_uid=CTImageStorage, sop_instance_uid=one.SOPInstanceUID, transfer_syntax_uid=syntax)
        assert content == head + encoded(one, transfer_syntax_uid=syntax)


def test_when_it_is_answered_it_is_on_disk(site):
    dataset = ct()
    os.kill(site.gateway._stow._keeper.processes[0].pid, 0)
    assert post(site.port, body([dicom_file(dataset)])).status_code == 200
    os.kill(site.pid, signal.SIGKILL)
    (study,) = site.studies()
    assert [path.stem for path in site.files(study)] == [dataset.SOPInstanceUID]


@pytest.mark.parametrize("durability", ["instance", "association", "none"])
def test_every_durability_stores(make_site, durability):
    site = make_site(durability=durability)
    assert post(site.port, body([dicom_file(ct())])).status_code == 200
    assert site.studies()[0].outcome == "triggered"


def test_chunks_of_any_size_are_put_together(site):
    whole = body([dicom_file(ct()), dicom_file(ct())])
    answer = post(site.port, (whole[at : at + 7] for at in range(0, len(whole), 7)))
    assert answer.status_code == 200
    assert site.studies()[0].instance_count == 2


@pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed")
def test_curl_sends_a_study(site, tmp_path):
    (tmp_path / "body").write_bytes(body([dicom_file(ct(PixelData=b"\0" * 3 * MIB))]))
    sent = subprocess.run(
        [
            *(
                "curl",
                "--silent",
                "--show-error",
                "--data-binary",
                f"@{tmp_path / 'body'}",
                "-H",
                f"Content-Type: {TYPE}",
            ),
            *("-H", f"Authorization: Bearer {TOKEN}", "-w", "%{http_code}", "-o", "/dev/null"),
            f"http://127.0.0.1:{site.port}/studies",
        ],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert sent.stdout == "200"


def test_an_instance_of_another_study_is_refused_by_itself(site):
    mine, other = ct(StudyInstanceUID="1.2.826.0.1.1"), ct(StudyInstanceUID="1.2.826.0.1.2")
    answer = post(site.port, body(map(dicom_file, (mine, other))), path="/studies/1.2.826.0.1.1")
    assert answer.status_code == 202
    assert reasons(answer) == {other.SOPInstanceUID: 0xA900}
    (study,) = site.studies()
    assert [path.stem for path in site.files(study)] == [mine.SOPInstanceUID]


def test_what_cannot_be_kept_is_refused_by_itself(site):
    good, lying, half = ct(), ct(), ct()
    whole = dicom_file(half)
    files = [
        dicom_file(good),
        dicom_file(lying, sop_instance_uid="1.2.3"),
        whole[: len(whole) - 20],
        b"no DICOM at all" * 20,
        b"",
    ]
    answer = post(site.port, body(files))
    assert answer.status_code == 202
    assert reasons(answer) == {"1.2.3": 0xA900, half.SOPInstanceUID: 0xC000}
    assert len(answer.json()["0008119A"]["Value"]) == 2
    assert site.studies()[0].instance_count == 1


def test_nothing_that_can_be_kept_is_a_conflict_and_leaves_nothing(site):
    assert post(site.port, body([b"no DICOM at all" * 20])).status_code == 409
    assert post(site.port, body([dicom_file(ct())], part_type="text/plain")).status_code == 409
    assert site.gateway.ledger.studies() == ()
    assert list((site.folder / "spool").iterdir()) == []


@pytest.mark.parametrize(
    ("content", "headers", "status"),
    [
        (b"", {}, 400),
        (b"no multipart", {}, 400),
        (body([]), {}, 400),
        (body([b"x"]), {"Content_Type": "multipart/related; boundary="}, 400),
        (body([b"x"]), {"Content_Type": "application/dicom"}, 415),
        (body([b"x"]), {"Content_Type": 'multipart/related; type="application/dicom+xml"; boundary=x'}, 415),
        (body([b"x"]), {"Accept": "application/dicom+xml"}, 406),
        (body([b"x"]), {"path": "/studies/not-a-uid"}, 400),
        (body([b"x"]), {"path": "/series"}, 404),
    ],
)
def test_what_is_no_store_request_is_told_so(site, content, headers, status):
    assert post(site.port, content, **headers).status_code == status


def test_a_body_that_is_cut_short_is_kept_as_far_as_it_was_whole_and_held(site):
    files = [dicom_file(ct()), dicom_file(ct())]
    whole = body(files)
    assert post(site.port, whole[: len(whole) - 60]).status_code == 400
    (study,) = site.studies()
    assert (study.outcome, study.complete, study.instance_count) == ("held", False, 1)


def test_a_sender_that_goes_away_inside_a_body_is_held(site):
    whole = body([dicom_file(ct()), dicom_file(ct())])
    with socket.create_connection(("127.0.0.1", site.port)) as connection:
        head = f"POST /studies HTTP/1.1\r\nHost: x\r\nContent-Type: {TYPE}\r\nAuthorization: Bearer {TOKEN}\r\n"
        connection.sendall(f"{head}Content-Length: {len(whole)}\r\n\r\n".encode() + whole[: len(whole) - 60])
    (study,) = site.studies()
    assert (study.outcome, study.instance_count) == ("held", 1)


def test_a_process_that_is_killed_inside_a_body_loses_nothing_whole_and_is_replaced(site):
    whole = body([dicom_file(ct()), dicom_file(ct(PixelData=b"\0" * MIB))])
    pid = site.pid
    with socket.create_connection(("127.0.0.1", site.port)) as connection:
        head = f"POST /studies HTTP/1.1\r\nHost: x\r\nContent-Type: {TYPE}\r\nAuthorization: Bearer {TOKEN}\r\n"
        connection.sendall(f"{head}Content-Length: {len(whole)}\r\n\r\n".encode() + whole[: len(whole) - 60])
        wait_until(lambda: len(list((site.folder / "spool").rglob("*.dcm"))) == 2, seconds=10, what="two files")
        os.kill(pid, signal.SIGKILL)
        (study,) = site.studies()
    assert (study.outcome, study.instance_count) == ("held", 1)
    wait_until(lambda: site.pid != pid, seconds=20, what="another process")
    assert post(site.port, body([dicom_file(ct())])).status_code == 200


@pytest.mark.parametrize("authorization", [None, "Bearer wrong", "Basic " + base64.b64encode(b"a:b").decode()])
def test_without_the_token_nothing_is_read(site, authorization, caplog):
    answer = post(site.port, body([dicom_file(ct())]), authorization=authorization)
    assert answer.status_code == 401
    assert answer.headers["www-authenticate"] == 'Bearer realm="STOW"'
    assert list((site.folder / "spool").iterdir()) == []


def test_a_user_sends_under_its_name(make_site):
    site = make_site(stow_token=None, stow_user="radiology-department", stow_password="a-password-for-tests")
    credentials = base64.b64encode(b"radiology-department:a-password-for-tests").decode()
    assert post(site.port, body([dicom_file(ct())]), authorization=f"Basic {credentials}").status_code == 200
    assert site.studies()[0].sender == "radiology-depart@127.0.0.1"


def test_it_does_not_start_where_everybody_could_send_by_mistake(make_site, tmp_path):
    with pytest.raises(StartError, match="STOW_PORT: nobody may send there; set STOW_TOKEN"):
        make_site(tmp_path / "one", stow_token=None)
    with pytest.raises(StartError, match="STOW_USER, STOW_PASSWORD"):
        make_site(tmp_path / "two", stow_token=None, stow_user="radiology")
    site = make_site(tmp_path / "three", stow_token=None, stow_anonymous=True)
    assert post(site.port, body([dicom_file(ct())]), authorization=None).status_code == 200


def test_a_port_in_use_names_its_setting(tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as other, pytest.raises(StartError, match="STOW_PORT: localhost:"):
        Site(tmp_path, stow_port=other.getsockname()[1])
    Site(tmp_path).gateway.stop(grace_seconds=0)


def memory_mib(pid, name):
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith(f"{name}:")).split()[1]) / 1024


def test_a_large_object_costs_no_memory(site):
    pixels = 300 * MIB
    dataset = ct(PixelData=b"\0" * 32)
    small = dicom_file(dataset)
    head = small[:-36] + pixels.to_bytes(4, "little")
    assert post(site.port, body([dicom_file(ct())])).status_code == 200
    site.studies()
    process_before, gateway_before = memory_mib(site.pid, "VmHWM"), memory_mib(os.getpid(), "VmHWM")

    def pieces():
        yield f"--{BOUNDARY}\r\nContent-Type: application/dicom\r\n\r\n".encode() + head
        for _ in range(pixels // MIB):
            yield bytes(MIB)
        yield f"\r\n--{BOUNDARY}--\r\n".encode()

    assert post(site.port, pieces()).status_code == 200
    study = next(study for study in site.studies(2) if dataset.SOPInstanceUID in str(site.files(study)))
    assert site.files(study)[0].stat().st_size > pixels
    assert memory_mib(site.pid, "VmHWM") - process_before < 40
    assert memory_mib(os.getpid(), "VmHWM") - gateway_before < 40


def test_strangers_who_say_nothing_or_little_lock_nobody_out(make_site):
    site = make_site(max_associations=100, metrics_port=0)
    head = f"POST /studies HTTP/1.1\r\nHost: x\r\nContent-Type: {TYPE}\r\n".encode()
    unknown = head + b"Content-Length: 1000000\r\n\r\n"
    with contextlib.ExitStack() as stack:
        for port in (site.port, site.gateway.metrics_port):
            for number in range(240):
                connection = stack.enter_context(socket.create_connection(("127.0.0.1", port), timeout=10))
                connection.sendall((b"", head, unknown)[number % 3])
        began = time.monotonic()
        assert post(site.port, body([dicom_file(ct())])).status_code == 200
        assert httpx.get(f"http://127.0.0.1:{site.gateway.metrics_port}/healthz", timeout=10).status_code == 200
        assert time.monotonic() - began < 5
    assert site.studies()[0].outcome == "triggered"


def test_bodies_that_stall_lock_out_nobody_at_another_address(make_site):
    site = make_site(max_associations=6, max_associations_per_peer=4)
    whole = body([dicom_file(ct())])
    head = f"POST /studies HTTP/1.1\r\nHost: x\r\nContent-Type: {TYPE}\r\nAuthorization: Bearer {TOKEN}\r\n"
    stalled = f"{head}Content-Length: {len(whole)}\r\n\r\n".encode() + whole[:-60]
    with contextlib.ExitStack() as stack:
        opened = [
            stack.enter_context(
                socket.create_connection(("127.0.0.1", site.port), source_address=("127.0.0.2", 0), timeout=10)
            )
            for _ in range(4)
        ]
        for connection in opened:
            connection.sendall(stalled)
        wait_until(lambda: len(list((site.folder / "spool").rglob("*.dcm"))) == 4, seconds=10, what="four bodies")
        with socket.create_connection(
            ("127.0.0.1", site.port), source_address=("127.0.0.2", 0), timeout=10
        ) as one_too_many:
            assert one_too_many.recv(100).startswith(b"HTTP/1.1 503 ")
        assert post(site.port, body([dicom_file(ct())])).status_code == 200
        opened[0].sendall(whole[-60:])
        assert opened[0].recv(100).startswith(b"HTTP/1.1 200 ")


def test_allowed_peers_are_asked_for_their_addresses(make_site, caplog):
    site = make_site(allowed_peers=("CT1", "10.0.0.0/8"))
    answer = post(site.port, body([dicom_file(ct())]), X_Forwarded_For="10.0.0.1")
    assert (answer.status_code, answer.text) == (403, "its address is not among those of ALLOWED_PEERS\n")
    assert "nobody may send over HTTP: STOW_HOSTNAME is reached from this host only" in caplog.text


def test_a_full_disk_is_told_and_damages_nothing(tmp_path):
    with small_disk(tmp_path / "disk") as disk:
        site = Site(disk)
        try:
            large = ct(PixelData=b"\0" * 20 * MIB)
            announced = post(site.port, body([dicom_file(large)]))
            assert announced.status_code == 507
            in_chunks = post(site.port, iter([body([dicom_file(large)])]))
            assert (in_chunks.status_code, reasons(in_chunks)) == (507, {large.SOPInstanceUID: 0xA700})
            small = ct()
            both = post(site.port, iter([body(map(dicom_file, (small, large)))]))
            assert (both.status_code, reasons(both)) == (202, {large.SOPInstanceUID: 0xA700})
            (study,) = site.studies()
            assert dcmread(site.files(study)[0]).SOPInstanceUID == small.SOPInstanceUID
        finally:
            site.gateway.stop(grace_seconds=0)


def test_neither_a_patient_nor_a_secret_is_logged(site, caplog):
    caplog.set_level(logging.DEBUG)
    post(site.port, body([dicom_file(ct()), dicom_file(ct())[:600], b"CANARY" * 100]))
    post(site.port, b"CANARY", path="/studies/CANARY")
    post(site.port, body([b""], part_type="CANARY"), authorization="Bearer CANARY-secret")
    site.studies()
    site.gateway.stop(grace_seconds=0)
    told = "".join(str(vars(record)) for record in caplog.records if "site-packages" not in record.pathname)
    assert "a request without valid credentials was refused" in told
    assert not [text for text in (*CANARIES, TOKEN) if text in told]


def test_what_comes_over_http_is_counted(make_site):
    site = make_site(metrics_port=0)
    post(site.port, body([dicom_file(ct()), b"no DICOM at all" * 20]))
    post(site.port, b"", authorization=None)

    def told():
        return httpx.get(f"http://127.0.0.1:{site.gateway.metrics_port}/metrics", timeout=10).text

    wait_until(lambda: 'reason="credentials"} 1.0' in told(), seconds=10, what="the counts")
    text = told()
    assert 'dicomflow_instances_total{answer="stored",door="stow"} 1.0' in text
    assert 'dicomflow_instances_total{answer="cannot-understand",door="stow"} 1.0' in text
