"""How a row of measurements is printed: median, 95th percentile, range."""

from __future__ import annotations

import statistics
from collections.abc import Sequence


def percentile(values: Sequence[float], percent: float) -> float:
    """Return the nearest-rank percentile."""
    ranked = sorted(values)
    return ranked[min(len(ranked) - 1, round(percent / 100 * len(ranked)))]


def percentile_95(values: Sequence[float]) -> float:
    """Return the nearest-rank 95th percentile."""
    return percentile(values, 95)


def spread(values: Sequence[float], unit: str) -> str:
    """Return median, p95 and range of ``values`` in one line."""
    return (
        f"median {statistics.median(values):8.2f} {unit}   p95 {percentile_95(values):8.2f} {unit}"
        f"   ({min(values):.2f} to {max(values):.2f}, n={len(values)})"
    )
