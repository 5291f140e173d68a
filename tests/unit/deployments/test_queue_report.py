"""What is to be known of a pool at once."""

from __future__ import annotations

from typing import Any

import pytest

from deployments.queue_report import OnlineWorker, PoolDepth, headline

WORKER = OnlineWorker(name="h1-cpu", slots=2)


def pool(**values: Any) -> PoolDepth:
    known = {"name": "cpu", "running": 1, "waiting": 12, "paused": False, "concurrency_limit": None}
    return PoolDepth(**{**known, "workers": (WORKER,), "queues": (), **values})


@pytest.mark.parametrize(
    ("values", "told"),
    [
        ({}, "cpu: 1 running; 12 waiting; served by h1-cpu (2 slots)"),
        ({"workers": ()}, "cpu: 1 running; 12 waiting; no worker serves this pool"),
        (
            {"paused": True, "concurrency_limit": 3},
            "cpu: 1 running of 3; 12 waiting; paused: nothing starts before it is resumed; served by h1-cpu (2 slots)",
        ),
        (
            {"workers": (OnlineWorker(name="a", slots=1), OnlineWorker(name="b", slots=None))},
            "cpu: 1 running; 12 waiting; served by a (1 slot), b",
        ),
    ],
    ids=["served", "nobody is there", "paused", "several"],
)
def test_a_pool_is_told_on_one_line(values: dict[str, Any], told: str):
    assert headline(pool(**values)) == told
