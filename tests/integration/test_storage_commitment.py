"""Storage commitment, asked for by pynetdicom's own SCU, of a gateway as a whole."""

from __future__ import annotations

import logging
import os
import signal

import pytest
from pydicom.dataset import Dataset
from pydicom.uid import CTImageStorage, MRImageStorage, generate_uid

from dicom_gateway.wiring import build_gateway
from flows_engine.handoff.site_settings import SiteSettings
from tests.fakes.commitment_scu import Reports, ask, commitment_association, report_scp
from tests.fakes.definitions import FakeDefinitions, flow
from tests.fakes.instances import ct
from tests.fakes.run_trigger import FakeRunTrigger
from tests.fakes.store_scu import association, send
from tests.services import wait_until


class Site:
    """A running gateway and its folder."""

    def __init__(self, folder, **settings):
        self.folder = folder
        self.gateway = build_gateway(
            SiteSettings(
                **{"data_dir": folder, "ae_port": 0, "receiver_processes": 2, "incomplete_seconds": 0, **settings}
            ),
            FakeRunTrigger(),
            FakeDefinitions(flow("CT", {"Modality": "CT"})),
        )
        self.gateway.start()
        self.port = self.gateway.port

    def store(self, count=3):
        """Send instances, and return their UIDs; the association has been released."""
        instances = [ct() for _ in range(count)]
        with association(self.port) as opened:
            assert [send(opened, one) for one in instances] == [0x0000] * count
        return [one.SOPInstanceUID for one in instances]

    def waiting(self):
        return list((self.folder / "commitments").iterdir())


@pytest.fixture
def make_site(tmp_path):
    sites = []

    def make(**settings):
        sites.append(Site(tmp_path / "data", **settings))
        return sites[-1]

    yield make
    for site in sites:
        site.gateway.stop(grace_seconds=0)


@pytest.fixture
def site(make_site):
    return make_site()


def committed(information):
    return [item.ReferencedSOPInstanceUID for item in information.get("ReferencedSOPSequence", [])]


def failed(information):
    return {item.ReferencedSOPInstanceUID: item.FailureReason for item in information.get("FailedSOPSequence", [])}


def test_what_was_stored_is_committed_on_the_association_that_asks(site):
    uids, reports = site.store(), Reports()
    with commitment_association(site.port, reports) as opened:
        status, transaction = ask(opened, uids)
        assert status == 0x0000
        ((event, information),) = reports.wait()
        assert (event, information.TransactionUID) == (1, transaction)
        assert committed(information) == uids
        wait_until(lambda: site.waiting() == [], seconds=10, what="the request is done with")


def test_it_is_committed_long_after_when_it_lies_in_the_store(site):
    uids, reports = site.store(), Reports()
    wait_until(lambda: len(site.gateway.ledger.studies()) == 1, seconds=10, what="the study")
    wait_until(lambda: not list((site.folder / "spool").iterdir()), seconds=10, what="the spool is empty")
    with commitment_association(site.port, reports) as opened:
        ask(opened, uids)
        assert reports.wait()[0][0] == 1


def test_folders_in_the_input_make_no_difference(make_site):
    site = make_site(tar_subdir=("Modality", "SeriesDescription"))
    uids, reports = site.store(), Reports()
    with commitment_association(site.port, reports) as opened:
        ask(opened, uids)
        assert reports.wait()[0][0] == 1


@pytest.mark.parametrize("durability", ["instance", "association", "none"])
def test_what_was_just_stored_on_the_same_association_is_committed(make_site, durability):
    site, reports, dataset = make_site(durability=durability), Reports(), ct()
    with commitment_association(site.port, reports) as opened:
        dataset.file_meta = None
        assert send_by(opened, dataset) == 0x0000
        ask(opened, [dataset.SOPInstanceUID])
        assert reports.wait()[0][0] == 1
        assert send_by(opened, ct()) == 0x0000
        ask(opened, [dataset.SOPInstanceUID])
        assert [event for event, _ in reports.wait(count=2)] == [1, 1]


def send_by(opened, dataset):
    return send(opened, dataset, transfer_syntax_uid=transfer_syntax_of(opened))


def transfer_syntax_of(opened):
    return next(
        context.transfer_syntax[0] for context in opened.accepted_contexts if context.abstract_syntax == CTImageStorage
    )


def test_what_is_not_there_and_what_is_of_another_class_is_told(site):
    (uid,), reports = site.store(1), Reports()
    unknown = generate_uid()
    with commitment_association(site.port, reports) as opened:
        ask(opened, [uid, unknown])
        ask(opened, [uid], sop_class_uid=MRImageStorage)
        (first, some), (second, conflict) = reports.wait(count=2)
    assert (first, committed(some), failed(some)) == (2, [uid], {unknown: 0x0112})
    assert (second, committed(conflict), failed(conflict)) == (2, [], {uid: 0x0119})


def test_a_file_that_is_gone_or_damaged_is_not_committed(site):
    uids, reports = site.store(3), Reports()
    wait_until(lambda: len(site.gateway.ledger.studies()) == 1, seconds=10, what="the study")
    files = {path.stem: path for path in (site.folder / "studies").rglob("*.dcm")}
    gone, cut, empty = uids
    files[gone].unlink()
    os.truncate(files[cut], files[cut].stat().st_size - 1)
    os.truncate(files[empty], 0)
    with commitment_association(site.port, reports) as opened:
        ask(opened, uids)
        ((event, information),) = reports.wait()
    assert event == 2
    assert failed(information) == {gone: 0x0112, cut: 0x0110, empty: 0x0110}


def test_the_report_comes_on_another_association_where_the_first_one_has_ended(make_site, free_port):
    site = make_site(commitment_peers={"ASKER": f"127.0.0.1:{free_port}"})
    uids, reports, late = site.store(), Reports(), Reports()
    with report_scp(free_port, late):
        with commitment_association(site.port, reports) as opened:
            _, transaction = ask(opened, uids)
        ((event, information),) = late.wait()
        wait_until(lambda: site.waiting() == [], seconds=10, what="the request is done with")
    assert (event, information.TransactionUID, committed(information)) == (1, transaction, uids)
    assert reports.events == []


def test_a_peer_that_is_away_is_told_later_also_by_a_gateway_that_started_anew(make_site, free_port):
    site = make_site(commitment_peers={"ASKER": f"127.0.0.1:{free_port}"})
    uids, late = site.store(), Reports()
    with commitment_association(site.port, Reports()) as opened:
        ask(opened, uids)
    wait_until(lambda: '"attempts":1' in site.waiting()[0].read_text(), seconds=15, what="the first attempt")
    site.gateway.stop(grace_seconds=0)
    again = make_site(commitment_peers={"ASKER": f"127.0.0.1:{free_port}"})
    with report_scp(free_port, late):
        assert late.wait()[0][0] == 1
        wait_until(lambda: again.waiting() == [], seconds=10, what="the request is done with")


def test_a_request_outlives_the_process_that_took_it(make_site, free_port):
    site = make_site(commitment_peers={"ASKER": f"127.0.0.1:{free_port}"}, receiver_processes=1)
    uids, late = site.store(), Reports()

    class Deaf(Reports):
        def take(self, event):
            os.kill(site.gateway._receiver._keeper.processes[0].pid, signal.SIGKILL)
            return 0x0110, None

    with report_scp(free_port, late), commitment_association(site.port, Deaf()) as opened:
        ask(opened, uids)
        assert late.wait()[0][0] == 1
        opened.is_established = False


def test_without_an_address_a_report_that_nobody_waits_for_is_dropped(site, caplog):
    caplog.set_level(logging.WARNING)
    with commitment_association(site.port, Reports()) as opened:
        ask(opened, site.store())
    wait_until(lambda: site.waiting() == [], seconds=15, what="the request is dropped")
    wait_until(lambda: "COMMITMENT_PEERS" in caplog.text, seconds=5, what="the reason")


def test_what_is_no_request_is_refused_and_nothing_is_kept(site):
    empty, hostile = Dataset(), Dataset()
    empty.TransactionUID = generate_uid()
    hostile.TransactionUID = "../../CANARY"
    hostile.ReferencedSOPSequence = [Dataset()]
    with commitment_association(site.port, Reports()) as opened:
        assert ask(opened, [generate_uid()], action=2)[0] == 0x0123
        assert ask(opened, [generate_uid()], instance="1.2.3")[0] == 0x0112
        assert ask(opened, [], information=empty)[0] == 0x0115
        assert ask(opened, [], information=hostile)[0] == 0x0115
        assert ask(opened, ["../../etc/passwd"])[0] == 0x0115
        assert send_by(opened, ct()) == 0x0000
    assert site.waiting() == []


def test_a_study_of_before_the_index_is_found_after_the_next_start(make_site):
    site = make_site()
    uids, reports = site.store(), Reports()
    wait_until(lambda: len(site.gateway.ledger.studies()) == 1, seconds=10, what="the study")
    wait_until(lambda: site.gateway.ledger.without_instances() == (), seconds=10, what="the index")
    with site.gateway.ledger._transaction() as connection:
        connection.execute("DELETE FROM instances")
        connection.execute("DELETE FROM indexed_studies")
    site.gateway.stop(grace_seconds=0)
    again = make_site()
    with commitment_association(again.port, reports) as opened:
        ask(opened, uids)
        assert reports.wait()[0][0] == 1


def test_nothing_of_it_names_a_patient_in_a_log(site, caplog):
    caplog.set_level(logging.INFO)
    uids, reports = site.store(), Reports()
    with commitment_association(site.port, reports) as opened:
        ask(opened, uids)
        reports.wait()
    told = [record.getMessage() for record in caplog.records if "site-packages" not in record.pathname]
    wait_until(lambda: site.waiting() == [], seconds=10, what="the request is done with")
    assert not [line for line in told if any(uid in line for uid in uids)]
