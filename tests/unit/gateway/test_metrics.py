from __future__ import annotations

import pytest
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.parser import text_string_to_metric_families

from dicom_gateway.ledger import Decision
from dicom_gateway.metrics import GatewayMetrics
from dicom_gateway.tally import Tally


def samples(tmp_path, tally, *, data_dir=None):
    registry = CollectorRegistry(auto_describe=False)
    registry.register(
        GatewayMetrics(
            tallies={"dicom": tally},
            open_connections=lambda: 3,
            restart_count=lambda: 2,
            ledger=tmp_path / "ledger.sqlite",
            data_dir=data_dir or tmp_path,
        )
    )
    text = generate_latest(registry).decode()
    return {
        (sample.name, *sorted(sample.labels.values())): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def test_everything_that_was_counted_is_told(ledger, tmp_path):
    tally = Tally()
    tally.accepted()
    tally.refused("no-request")
    for seconds in (0.0002, 0.3):
        tally.answered(0, 500, seconds)
    tally.answered(0xA700, 500, 0.3)
    found = samples(tmp_path, tally)
    assert found["dicomflow_associations_accepted_total", "dicom"] == 1
    assert found["dicomflow_associations_refused_total", "dicom", "no-request"] == 1
    assert found["dicomflow_associations_refused_total", "dicom", "handshake"] == 0
    assert found["dicomflow_instances_total", "dicom", "stored"] == 2
    assert found["dicomflow_instances_total", "dicom", "out-of-resources"] == 1
    assert found["dicomflow_stored_bytes_total", "dicom"] == 1000
    assert found["dicomflow_store_seconds_bucket", "0.00025", "dicom"] == 1
    assert found["dicomflow_store_seconds_bucket", "+Inf", "dicom"] == 3
    assert found["dicomflow_store_seconds_sum", "dicom"] == pytest.approx(0.6002)
    assert found["dicomflow_open_connections",] == 3
    assert found["dicomflow_receiving_process_restarts_total",] == 2


def test_ledger_and_disk_are_read_when_asked(ledger, make_record, make_request, tmp_path):
    study_id = make_record().study_id
    ledger.add(make_record())
    ledger.decide(study_id, Decision(outcome="triggered", reason="", requests=(make_request(study_id),)))
    found = samples(tmp_path, Tally())
    assert found["dicomflow_studies", "triggered"] == 1
    assert found["dicomflow_studies", "held"] == 0
    assert found["dicomflow_outbox_runs",] == 1
    assert 0 <= found["dicomflow_outbox_oldest_seconds",] < 60
    assert 0 < found["dicomflow_disk_free_bytes",] < found["dicomflow_disk_total_bytes",]
    assert found["dicomflow_ledger_up",] == 1


def test_what_cannot_be_read_is_left_out_and_the_rest_is_told(tmp_path):
    found = samples(tmp_path, Tally(), data_dir=tmp_path / "gone")
    names = {name for name, *_ in found}
    assert found["dicomflow_ledger_up",] == 0
    assert "dicomflow_associations_accepted_total" in names
    assert not names & {"dicomflow_studies", "dicomflow_outbox_runs", "dicomflow_disk_free_bytes"}
