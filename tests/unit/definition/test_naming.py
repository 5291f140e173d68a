"""The names by which Prefect knows things."""

from __future__ import annotations

import pytest

from flows_engine.definition import naming


@pytest.mark.parametrize(
    ("gpus", "pool"),
    [
        ((), "cpu"),
        ((False, False), "cpu"),
        ((False, True), "gpu"),
        ((True, "a100"), "gpu-a100"),
        (("a100",), "gpu-a100"),
        ((False, 2), "gpu"),
        ((2, "a100"), "gpu-a100"),
    ],
)
def test_the_pool_follows_from_the_gpus(gpus: tuple[naming.Gpu, ...], pool: str) -> None:
    assert naming.work_pool(gpus) == pool


def test_a_kind_of_gpu_is_served_beside_any_gpu() -> None:
    assert naming.gpu_pools(None) == ("gpu",)
    assert naming.gpu_pools("a100") == ("gpu", "gpu-a100")


def test_our_highest_priority_is_the_lowest_number_of_prefect() -> None:
    assert [naming.queue_priority(priority) for priority in naming.PRIORITIES] == [6, 5, 4, 3, 2, 1]
    assert naming.work_queue(5) == "priority-5"


def test_a_queue_tells_its_priority() -> None:
    assert [naming.priority_of(naming.work_queue(priority)) for priority in naming.PRIORITIES] == list(range(6))
    assert naming.priority_of("default") is None


def test_a_priority_is_told_by_its_tag() -> None:
    assert naming.priority_tag(4) == "priority:4"
    assert naming.is_priority_tag("priority:4")
    assert not naming.is_priority_tag(naming.study_tag("priority"))


def test_tags_say_version_and_priority() -> None:
    assert naming.definition_tags(version="1.02", priority=4) == ["dicomflow", "priority:4", "version:1.02"]
    assert naming.definition_tags(version="", priority=0) == ["dicomflow", "priority:0"]


def test_a_deployment_and_a_study_have_their_full_names() -> None:
    assert naming.deployment("Fancy Flow") == "process-study/Fancy Flow"
    assert naming.study_tag("0193") == "study:0193"
    assert naming.run_name("Fancy Flow", "0193") == "Fancy Flow 0193"


def test_a_pool_for_models_has_a_queue_for_each_priority_and_one_behind_them() -> None:
    assert list(naming.queues("gpu-a100").items()) == [
        ("priority-5", 1),
        ("priority-4", 2),
        ("priority-3", 3),
        ("priority-2", 4),
        ("priority-1", 5),
        ("priority-0", 6),
        ("background", 7),
    ]
    assert naming.last_queue("cpu") == "background"


def test_the_gateways_own_pool_has_prefects_queue_alone() -> None:
    assert naming.queues("gateway") == {}
    assert naming.last_queue("gateway") == "default"


def test_runs_that_were_asked_for_say_so_and_by_which_request() -> None:
    assert naming.reason_tag("reprocess") == "reason:reprocess"
    assert naming.request_tag("85d9") == "reprocess:85d9"
