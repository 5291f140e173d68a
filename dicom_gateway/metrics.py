"""The gateway's figures as Prometheus wants them, read when it asks. No label holds text of a peer or of a patient."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import accumulate
from pathlib import Path
from typing import Final, get_args

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

from dicom_gateway.errors import LedgerSilentError
from dicom_gateway.ledger_figures import LedgerFigures, read_ledger_figures
from dicom_gateway.tally import LATENCY_BOUNDS_SECONDS, Answer, Counts, Refusal, Tally
from flows_engine.handoff.study_store import StudyOutcome

_DOOR: Final = "door"


class GatewayMetrics(Collector):
    """Everything that the gateway tells. ``tallies`` are by the door that instances come in through."""

    def __init__(
        self,
        *,
        tallies: Mapping[str, Tally],
        open_connections: Callable[[], int],
        restart_count: Callable[[], int],
        ledger: Path,
        data_dir: Path,
    ) -> None:
        self._tallies = tallies
        self._open_connections = open_connections
        self._restart_count = restart_count
        self._ledger = ledger
        self._data_dir = data_dir

    def collect(self) -> Iterator[Metric]:
        """Yield all figures. Those that cannot be read are left out."""
        yield from _of_tallies({door: tally.counts() for door, tally in self._tallies.items()})
        yield GaugeMetricFamily(
            "dicomflow_open_connections", "DICOM connections that are served now", value=self._open_connections()
        )
        yield CounterMetricFamily(
            "dicomflow_receiving_process_restarts",
            "Receiving processes that died and were replaced",
            value=self._restart_count(),
        )
        yield from _of_disk(self._data_dir)
        try:
            figures = read_ledger_figures(self._ledger)
        except LedgerSilentError:
            yield _ledger_up(is_up=False)
            return
        yield _ledger_up(is_up=True)
        yield from _of_ledger(figures, now=time.time())


def _of_tallies(counts: Mapping[str, Counts]) -> Iterator[Metric]:
    accepted = CounterMetricFamily(
        "dicomflow_associations_accepted", "Associations accepted, and requests over HTTP read", labels=[_DOOR]
    )
    refused = CounterMetricFamily(
        "dicomflow_associations_refused", "Connections and requests refused", labels=[_DOOR, "reason"]
    )
    instances = CounterMetricFamily(
        "dicomflow_instances", "Instances, by what their sender was told", labels=[_DOOR, "answer"]
    )
    size = CounterMetricFamily("dicomflow_stored_bytes", "Bytes of the data sets stored", labels=[_DOOR])
    latency = HistogramMetricFamily(
        "dicomflow_store_seconds", "From the first byte of an instance to its answer", labels=[_DOOR]
    )
    for door, counted in counts.items():
        accepted.add_metric([door], counted.accepted)
        for reason in get_args(Refusal):
            refused.add_metric([door, reason], counted.refused.get(reason, 0))
        for answer in get_args(Answer):
            instances.add_metric([door, answer], counted.answers.get(answer, 0))
        size.add_metric([door], counted.bytes_stored)
        latency.add_metric([door], buckets=_buckets(counted.latencies), sum_value=counted.seconds)
    yield from (accepted, refused, instances, size, latency)


def _buckets(latencies: Iterable[int]) -> list[tuple[str, float]]:
    bounds = [*(str(bound) for bound in LATENCY_BOUNDS_SECONDS), "+Inf"]
    return list(zip(bounds, map(float, accumulate(latencies)), strict=True))


def _of_disk(data_dir: Path) -> Iterator[Metric]:
    try:
        usage = shutil.disk_usage(data_dir)
    except OSError:
        return
    yield GaugeMetricFamily("dicomflow_disk_free_bytes", "Free space of DATA_DIR", value=usage.free)
    yield GaugeMetricFamily("dicomflow_disk_total_bytes", "Size of the disk of DATA_DIR", value=usage.total)


def _ledger_up(*, is_up: bool) -> Metric:
    return GaugeMetricFamily("dicomflow_ledger_up", "Whether the ledger answered in time", value=float(is_up))


def _of_ledger(figures: LedgerFigures, *, now: float) -> Iterator[Metric]:
    studies = GaugeMetricFamily("dicomflow_studies", "Studies, by what became of them", labels=["outcome"])
    for outcome in get_args(StudyOutcome):
        studies.add_metric([outcome], figures.studies.get(outcome, 0))
    yield studies
    yield GaugeMetricFamily(
        "dicomflow_outbox_runs", "Runs that are still to be created in Prefect", value=figures.pending_count
    )
    oldest = figures.oldest_pending_at
    yield GaugeMetricFamily(
        "dicomflow_outbox_oldest_seconds",
        "For how long the oldest of them has waited",
        value=max(0.0, now - oldest.timestamp()) if oldest else 0.0,
    )
