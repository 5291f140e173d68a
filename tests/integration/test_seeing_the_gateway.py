"""What a gateway tells of itself over HTTP, with real senders, and alert rules for it."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

from dicom_gateway.errors import StartError
from dicom_gateway.wiring import build_gateway
from flows_engine.handoff.site_settings import SiteSettings
from tests.fakes.definitions import FakeDefinitions, flow
from tests.fakes.instances import CANARIES, ct, encoded
from tests.fakes.run_trigger import FakeRunTrigger
from tests.fakes.store_scu import association, send
from tests.services import ROOT, wait_until

RULES = ROOT / "docs" / "examples" / "prometheus-rules.yaml"


@pytest.fixture
def gateway(tmp_path):
    gateway = build_gateway(
        SiteSettings(data_dir=tmp_path / "data", ae_port=0, metrics_port=0, receiver_processes=1),
        FakeRunTrigger(),
        FakeDefinitions(flow("CT", {"Modality": "CT"})),
    )
    gateway.start()
    yield gateway
    gateway.stop(grace_seconds=0)


def get(gateway, path):
    return httpx.get(f"http://127.0.0.1:{gateway.metrics_port}{path}", timeout=10)


def samples(gateway):
    families = text_string_to_metric_families(get(gateway, "/metrics").raise_for_status().text)
    return {
        (sample.name, *sorted(sample.labels.values())): sample.value for family in families for sample in family.samples
    }


def test_what_was_stored_and_what_was_refused_is_told_when_the_association_has_ended(gateway):
    with association(gateway.port) as opened:
        for _ in range(20):
            assert send(opened, ct()) == 0x0000
        assert send(opened, encoded(ct())[:100], sop_instance_uid="1.2.3") == 0xC000
        wait_until(lambda: samples(gateway)["dicomflow_open_connections",] == 1, seconds=10, what="it is open")
    wait_until(
        lambda: samples(gateway)["dicomflow_instances_total", "cannot-understand", "dicom"] == 1,
        seconds=10,
        what="the counts",
    )
    wait_until(lambda: samples(gateway)["dicomflow_studies", "triggered"] == 1, seconds=10, what="the study")
    found = samples(gateway)
    assert found["dicomflow_associations_accepted_total", "dicom"] == 1
    assert found["dicomflow_instances_total", "dicom", "stored"] == 20
    assert found["dicomflow_stored_bytes_total", "dicom"] > 20 * 300
    assert found["dicomflow_store_seconds_count", "dicom"] == 21
    assert found["dicomflow_store_seconds_sum", "dicom"] > 0
    assert found["dicomflow_open_connections",] == 0


def test_counts_come_while_an_association_stays_open(gateway):
    with association(gateway.port) as opened:
        assert send(opened, ct()) == 0x0000
        wait_until(
            lambda: samples(gateway)["dicomflow_instances_total", "dicom", "stored"] == 1, seconds=10, what="the count"
        )


def test_objects_that_take_pynetdicoms_path_are_counted_as_well(tmp_path):
    gateway = build_gateway(
        SiteSettings(data_dir=tmp_path, ae_port=0, metrics_port=0, receiver_processes=1, c_store_path="stock"),
        FakeRunTrigger(),
        FakeDefinitions(),
    )
    gateway.start()
    try:
        with association(gateway.port) as opened:
            assert send(opened, ct()) == 0x0000
        wait_until(
            lambda: samples(gateway)["dicomflow_instances_total", "dicom", "stored"] == 1, seconds=10, what="the count"
        )
    finally:
        gateway.stop(grace_seconds=0)


def test_no_page_names_a_peer_or_a_patient(gateway):
    with association(gateway.port) as opened:
        assert send(opened, ct()) == 0x0000
    wait_until(lambda: samples(gateway)["dicomflow_studies", "triggered"] == 1, seconds=10, what="the study")
    told = "".join(get(gateway, page).text for page in ("/healthz", "/readyz", "/metrics"))
    assert not [text for text in (*CANARIES, "HOSTILE", "127.0.0.1") if text in told]


def test_a_receiving_process_that_dies_is_counted_and_readiness_comes_back(gateway):
    assert get(gateway, "/readyz").text == "ready\n"
    (process,) = gateway._receiver._keeper.processes
    os.kill(process.pid, signal.SIGKILL)
    wait_until(lambda: get(gateway, "/readyz").status_code == 503, seconds=10, what="it is not ready")
    assert get(gateway, "/healthz").status_code == 200
    wait_until(lambda: get(gateway, "/readyz").status_code == 200, seconds=20, what="it is ready again")
    assert samples(gateway)["dicomflow_receiving_process_restarts_total",] == 1


def test_a_spool_that_cannot_be_written_is_told_with_the_reason(gateway, tmp_path):
    spool = tmp_path / "data" / "spool"
    spool.rename(tmp_path / "data" / "elsewhere")
    answer = get(gateway, "/readyz")
    assert (answer.status_code, answer.text) == (
        503,
        "DATA_DIR: the spool cannot be written: No such file or directory\n",
    )
    (tmp_path / "data" / "elsewhere").rename(spool)


def test_it_is_off_by_default_and_a_port_in_use_names_its_setting(tmp_path):
    gateway = build_gateway(SiteSettings(data_dir=tmp_path, ae_port=0), FakeRunTrigger(), FakeDefinitions())
    gateway.start()
    assert gateway.metrics_port is None
    gateway.stop(grace_seconds=0)
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        gateway = build_gateway(
            SiteSettings(data_dir=tmp_path, ae_port=0, metrics_port=port), FakeRunTrigger(), FakeDefinitions()
        )
        with pytest.raises(StartError, match=f"METRICS_PORT: localhost:{port} is in use"):
            gateway.start()


def test_prometheus_takes_the_alert_rules():
    if shutil.which("promtool") is None:
        pytest.skip("promtool is not installed")
    checked = subprocess.run(["promtool", "check", "rules", str(RULES)], capture_output=True, text=True, check=False)
    assert checked.returncode == 0, checked.stderr


def test_the_alert_rules_ask_for_figures_that_there_are(gateway):
    told = {name for name, *_ in samples(gateway)}
    asked = {
        word
        for line in RULES.read_text().splitlines()
        if line.strip().startswith("expr:")
        for word in line.replace("(", " ").replace("{", " ").replace("[", " ").split()
        if word.startswith("dicomflow_")
    }
    assert asked
    assert asked <= told
