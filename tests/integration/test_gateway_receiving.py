"""The gateway as a whole, with real peers: DCMTK, and a sender that does not keep to the rules."""

from __future__ import annotations

import ctypes
import logging
import os
import shutil
import subprocess
import threading
import time

import pytest
from pydicom import dcmread
from pydicom.data import get_testdata_file
from pydicom.dataset import Dataset
from pydicom.sequence import Sequence
from pydicom.uid import (
    CTImageStorage,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    UID_dictionary,
    generate_uid,
)
from pynetdicom import AE

from dicom_gateway.wiring import build_gateway
from flows_engine.handoff.header import read_file_header
from flows_engine.handoff.site_settings import SiteSettings
from flows_engine.handoff.study_store import StudyStore
from tests.fakes.definitions import FakeDefinitions, flow
from tests.fakes.instances import CANARIES, ct, encoded
from tests.fakes.run_trigger import FakeRunTrigger
from tests.fakes.store_scu import association, die_inside_an_object, fall_silent_inside_an_object, send

DCMTK_ENVIRONMENT = {**os.environ, "TCP_NODELAY": "1"}

CT_ONLY = (flow("CT", {"Modality": "CT"}),)


class Site:
    """A running gateway and its folder."""

    def __init__(self, folder, *, definitions=CT_ONLY, **settings):
        self.folder = folder
        self.trigger = FakeRunTrigger()
        self.gateway = build_gateway(
            SiteSettings(
                data_dir=folder, **{"ae_port": 0, "disk_reserve_bytes": 0, "incomplete_seconds": 0, **settings}
            ),
            self.trigger,
            FakeDefinitions(*definitions),
        )
        self.gateway.start()
        self.port = self.gateway.port
        self.store = StudyStore(folder / "studies")

    def settled(self, count):
        studies = self.gateway.ledger.studies()
        return len(studies) == count and all(
            study.outcome != "received" and all(run.state != "pending" for run in study.runs) for study in studies
        )

    def studies(self, count=1):
        """Wait until there are so many decided studies, and return them."""
        wait_until(lambda: self.settled(count))
        return self.gateway.ledger.studies()

    def files(self, study):
        return sorted(self.store.input_folder(study.study_id).rglob("*.dcm"))

    def spooled(self):
        return [path for path in (self.folder / "spool").rglob("*") if path.is_file()]


def wait_until(condition, *, seconds=15.0):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.01)


@pytest.fixture
def site(tmp_path):
    site = Site(tmp_path / "data")
    yield site
    site.gateway.stop(grace_seconds=0)


def data_set_of(path):
    """Return the bytes after the file meta information."""
    with path.open("rb") as file:
        content = file.read()
    return content[144 + int.from_bytes(content[140:144], "little") :]


def dcmtk(*command):
    if shutil.which(command[0]) is None:
        if os.environ.get("CI"):
            pytest.fail(f"{command[0]} of DCMTK is not installed")
        pytest.skip(f"{command[0]} of DCMTK is not installed")
    return subprocess.run(
        [str(part) for part in command], env=DCMTK_ENVIRONMENT, capture_output=True, text=True, timeout=60, check=False
    )


def test_who_sends_and_what_lies_deep_pick_the_flow(tmp_path):
    step = "RequestAttributesSequence.ScheduledProcedureStepDescription"
    private = '(0029,"ACME 1.0",10)'
    definitions = (
        flow("Research", {"Modality": "CT", "Sender.AETitle": "^HOSTILE$", "Sender.Host": r"^127\.", step: "^Head$"}),
        flow("Clinic", {"Modality": "CT", "Sender.AETitle": "^CT1$"}),
        flow("Called", {"Called.AETitle": "^ANY-SCP$", private: "special"}),
        flow("Other", {"Called.AETitle": "~ANY-SCP"}),
        flow("Neck", {step: "^Neck$"}),
        flow("Many", {"Modality": "CT", "min_instances": 3}),
    )
    requested = Dataset()
    requested.ScheduledProcedureStepDescription = "Head"
    site = Site(tmp_path / "data", definitions=definitions)
    try:
        with association(site.port) as opened:
            for _ in range(2):
                instance = ct(RequestAttributesSequence=Sequence([requested]))
                instance.private_block(0x0029, "ACME 1.0", create=True).add_new(0x10, "LO", "special")
                assert send(opened, instance) == 0x0000
        (study,) = site.studies()
    finally:
        site.gateway.stop(grace_seconds=0)
    assert sorted(run.flow for run in study.runs) == ["Called", "Research"]


@pytest.mark.dcmtk
def test_echo_is_answered(site):
    assert dcmtk("echoscu", "localhost", site.port).returncode == 0


@pytest.mark.dcmtk
@pytest.mark.parametrize(
    ("name", "propose"),
    [
        ("CT_small.dcm", "-x="),
        ("MR_small_implicit.dcm", "-xi"),
        ("MR_small_bigendian.dcm", "-xb"),
        ("MR_small_RLE.dcm", "-xr"),
        ("SC_rgb_jpeg_dcmtk.dcm", "-xy"),
        ("JPEG2000.dcm", "-xw"),
        ("rtplan.dcm", "-xi"),
        ("image_dfl.dcm", "-xd"),
    ],
)
def test_a_file_of_every_kind_is_stored_bit_for_bit(site, name, propose, tmp_path):
    source = get_testdata_file(name, download=False)
    sent = dcmtk("storescu", propose, "-R", "localhost", site.port, source)
    assert sent.returncode == 0, sent.stderr
    (study,) = site.studies()
    (stored,) = site.files(study)
    original, kept = dcmread(source), dcmread(stored)
    assert kept.file_meta.TransferSyntaxUID == original.file_meta.TransferSyntaxUID
    original.pop(0xFFFCFFFC, None)  # storescu itself does not send the padding at the end of a file
    assert kept == original
    if "PixelData" in original:
        assert kept.PixelData == original.PixelData


def test_the_data_set_on_disk_is_what_travelled(site):
    syntaxes = (ExplicitVRLittleEndian, ImplicitVRLittleEndian, ExplicitVRBigEndian)
    contexts = [(CTImageStorage, syntax) for syntax in syntaxes]
    travelled = {}
    with association(site.port, contexts=contexts) as opened:
        for syntax in syntaxes:
            dataset = ct(PixelData=os.urandom(700_000))
            travelled[dataset.SOPInstanceUID] = encoded(dataset, transfer_syntax_uid=syntax)
            assert send(opened, dataset, transfer_syntax_uid=syntax) == 0x0000
    (study,) = site.studies()
    assert {path.stem: data_set_of(path) for path in site.files(study)} == travelled
    assert study.outcome == "triggered"


def test_success_means_that_it_is_on_disk(site):
    with association(site.port) as opened:
        for count in range(1, 4):
            dataset = ct()
            assert send(opened, dataset) == 0x0000
            names = [path.name for path in site.spooled()]
            assert f"{dataset.SOPInstanceUID}.dcm" in names
            assert len([name for name in names if name.endswith(".dcm")]) == count
            assert not [name for name in names if name.endswith(".part")]


def test_every_storage_class_is_accepted_private_ones_too(site):
    known = [uid for uid, entry in UID_dictionary.items() if entry[1] == "SOP Class" and "Storage" in entry[0]]
    known = [
        uid for uid in known if "Commitment" not in UID_dictionary[uid][0] and "Media" not in UID_dictionary[uid][0]
    ]
    assert len(known) > 150
    known += ["1.3.12.2.1107.5.9.1", "1.2.826.0.1.3680043.9999.1"]
    refused = []
    for start in range(0, len(known), 120):
        entity = AE(ae_title="SENDER")
        for uid in known[start : start + 120]:
            entity.add_requested_context(uid, ["1.2.840.10008.1.2.4.201"])
        opened = entity.associate("127.0.0.1", site.port)
        assert opened.is_established
        refused += [context.abstract_syntax.name for context in opened.rejected_contexts]
        opened.release()
    assert refused == []


def test_a_private_class_is_stored(site):
    private = "1.3.12.2.1107.5.9.1"
    with association(site.port, contexts=[(private, ExplicitVRLittleEndian)]) as opened:
        assert send(opened, ct(SOPClassUID=private), sop_class_uid=private) == 0x0000
    (study,) = site.studies()
    assert len(site.files(study)) == 1


@pytest.mark.parametrize("uid", ["../../etc/x", "9" * 200, "", "1.2.é", "1.2/../..", "1.2\0.3"])
def test_a_hostile_uid_is_refused_and_its_association_goes_on(site, uid):
    with association(site.port) as opened:
        assert send(opened, ct(SOPInstanceUID="1.2.3"), sop_instance_uid=uid) == 0xA900
        assert send(opened, ct()) == 0x0000
    (study,) = site.studies()
    assert (study.instance_count, study.outcome) == (1, "triggered")
    assert {path.name for path in site.folder.parent.iterdir()} == {"data"}


def test_half_an_object_is_refused_and_its_association_goes_on(site):
    whole = encoded(ct(SOPInstanceUID="1.2.3"))
    with association(site.port) as opened:
        assert send(opened, whole[: len(whole) // 2], sop_instance_uid="1.2.3") == 0xC000
        assert send(opened, b"this is no DICOM at all", sop_instance_uid="1.2.3") == 0xC000
        assert send(opened, ct(SOPInstanceUID=None), sop_instance_uid="1.2.3") == 0xA900
        assert send(opened, ct()) == 0x0000
    (study,) = site.studies()
    assert (study.instance_count, study.outcome) == (1, "triggered")


def test_without_a_patient_id_a_study_is_still_a_study(site):
    with association(site.port) as opened:
        for study_uid in ("1.1", "1.2", "1.1"):
            assert send(opened, ct(PatientID=None, StudyInstanceUID=study_uid)) == 0x0000
    assert sorted(study.instance_count for study in site.studies(2)) == [1, 2]


def test_the_same_uid_twice_loses_neither_content(site):
    uid = generate_uid()
    with association(site.port) as opened:
        first, other = ct(SOPInstanceUID=uid), ct(SOPInstanceUID=uid, SeriesDescription="another")
        assert [send(opened, one) for one in (first, first, other)] == [0, 0, 0]
    (study,) = site.studies()
    assert [path.name for path in site.files(study)] == [f"{uid}.dcm", f"{uid}_2.dcm"]
    record = site.store.record(study.study_id)
    assert (record.instance_count, record.duplicate_count, record.conflict_count) == (2, 1, 1)


def test_the_patients_of_one_association_are_split(site):
    with association(site.port) as opened:
        for number in range(9):
            assert send(opened, ct(PatientID=f"P{number % 3}")) == 0x0000
    for study in site.studies(3):
        patients = {read_file_header(path.read_bytes()).text(0x00100020) for path in site.files(study)}
        assert len(patients) == 1
        assert study.instance_count == 3


def test_an_aborted_association_is_kept_and_held(site):
    with association(site.port) as opened:
        for _ in range(3):
            assert send(opened, ct()) == 0x0000
        opened.abort()
    (study,) = site.studies()
    assert (study.outcome, study.complete, study.instance_count) == ("held", False, 3)
    assert len(site.files(study)) == 3
    site.gateway.ledger.release(study.study_id)
    wait_until(lambda: len(site.trigger.runs) == 1)
    assert site.studies()[0].outcome == "triggered"


def test_a_sender_that_dies_inside_an_object_is_kept_and_held(site):
    with association(site.port) as opened:
        for _ in range(2):
            assert send(opened, ct()) == 0x0000
        die_inside_an_object(opened)
        (study,) = site.studies()
        opened.is_established = False
    assert (study.outcome, study.instance_count) == ("held", 2)
    assert site.spooled() == []
    with association(site.port) as opened:
        assert send(opened, ct()) == 0x0000
    assert {one.outcome for one in site.studies(2)} == {"held", "triggered"}


def test_an_association_without_instances_leaves_nothing(site):
    with association(site.port):
        pass
    wait_until(lambda: not site.gateway._receiver.open_connections)
    assert site.gateway.ledger.studies() == ()
    assert list((site.folder / "spool").iterdir()) == []


def test_several_senders_at_once_are_kept_apart(site):
    def send_some():
        with association(site.port) as opened:
            for _ in range(10):
                assert send(opened, ct()) == 0x0000

    threads = [threading.Thread(target=send_some) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    studies = site.studies(4)
    assert [study.instance_count for study in studies] == [10] * 4
    assert len(site.trigger.runs) == 4


def test_stopping_commits_what_was_sent(site):
    with association(site.port) as opened:
        assert send(opened, ct()) == 0x0000
        site.gateway.stop(grace_seconds=0)
        opened.is_established = False
    again = Site(site.folder)
    try:
        (study,) = again.studies()
        assert (study.outcome, study.complete) == ("held", False)
    finally:
        again.gateway.stop(grace_seconds=0)


def test_a_peer_that_falls_silent_inside_an_object_cannot_delay_the_stop(tmp_path):
    site = Site(tmp_path / "data")
    with association(site.port) as opened:
        assert send(opened, ct()) == 0x0000
        fall_silent_inside_an_object(opened)
        began = time.monotonic()
        site.gateway.stop(grace_seconds=0)
        assert time.monotonic() - began < 10
        opened.is_established = False
    assert len(list(site.store.study_ids())) == 1


def test_the_input_is_laid_out_as_the_site_wants_it(tmp_path):
    site = Site(tmp_path / "data", tar_subdir=("Modality", "SeriesDescription"))
    with association(site.port) as opened:
        for description in ("thorax", "../../../etc", None):
            assert send(opened, ct(SeriesDescription=description)) == 0x0000
    (study,) = site.studies()
    site.gateway.stop(grace_seconds=0)
    folders = sorted(path.parent.name for path in site.files(study))
    assert len(folders) == 3
    assert {"thorax", "unknown"} <= set(folders)
    assert {path.parent.parent.name for path in site.files(study)} == {"CT"}


def test_no_log_and_no_ledger_names_a_patient(site, caplog):
    caplog.set_level(logging.INFO)
    with association(site.port) as opened:
        send(opened, ct())
        send(opened, encoded(ct())[:200], sop_instance_uid="1.2.3")
        send(opened, ct(), sop_instance_uid="../../CANARY")
        opened.abort()
    site.studies()
    # The sender logs here, too, from within pynetdicom; what the receiving processes have to say, the gateway logs.
    told = "".join(str(record.__dict__) for record in caplog.records if "site-packages" not in record.pathname)
    assert "a study was received" in told
    assert not [canary for canary in CANARIES if canary in told]
    for path in site.folder.glob("ledger.sqlite*"):
        assert not [canary for canary in CANARIES if canary.encode() in path.read_bytes()]


@pytest.fixture
def small_disk(tmp_path):
    """Mount a disk of 6 MiB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.mount(b"tmpfs", str(folder).encode(), b"tmpfs", 0, b"size=6m") != 0:
        pytest.skip(f"a small disk cannot be mounted here: {os.strerror(ctypes.get_errno())}")
    yield folder
    libc.umount2(str(folder).encode(), 2)


def test_a_full_disk_is_told_and_harms_nothing(small_disk):
    filler = small_disk / "filler"
    site = Site(small_disk / "data")
    filler.write_bytes(b"\0" * 3 * 1024 * 1024)
    acknowledged = []
    try:
        with association(site.port) as opened:
            statuses = set()
            for _ in range(12):
                dataset = ct(PixelData=os.urandom(400_000))
                status = send(opened, dataset)
                statuses.add(status)
                if status == 0x0000:
                    acknowledged.append(dataset)
            assert statuses == {0x0000, 0xA700}
            assert not [path for path in site.spooled() if path.suffix == ".part"]
            filler.unlink()
            dataset = ct(PixelData=os.urandom(400_000))
            assert send(opened, dataset) == 0x0000
            acknowledged.append(dataset)
        (study,) = site.studies()
        assert (study.outcome, study.complete) == ("triggered", True)
        kept = {path.stem: data_set_of(path) for path in site.files(study)}
        assert kept == {str(one.SOPInstanceUID): encoded(one) for one in acknowledged}
    finally:
        site.gateway.stop(grace_seconds=0)
