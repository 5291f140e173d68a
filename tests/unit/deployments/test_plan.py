from __future__ import annotations

from dataclasses import replace

import pytest

from deployments.plan import (
    Deployment,
    PrefectContents,
    desired_deployment,
    differences,
    plan,
    pools_for,
    reprocess_deployment,
    retired,
)
from flows_engine.definition.schema import FlowDefinition
from tests.fakes.definitions import flow

SCHEMA = {"type": "object"}
QUEUES = {**{f"priority-{priority}": 6 - priority for priority in range(6)}, "background": 7}
POOLS = {"cpu": QUEUES, "gpu": QUEUES}


def wanted(name: str = "A", **values: object) -> Deployment:
    document = {"name": name, "triggers": [{"Modality": "CT"}], "models": [{"docker_kwargs": {"image": "busybox"}}]}
    return desired_deployment(FlowDefinition.model_validate({**document, **values}), parameter_schema=SCHEMA)


def reprocessing() -> Deployment:
    return reprocess_deployment(parameter_schema=SCHEMA)


def holding(*deployments: Deployment, busy: tuple[str, ...] = (), queues=POOLS) -> PrefectContents:
    return PrefectContents(
        queue_priorities=queues,
        deployments={deployment.key: deployment for deployment in deployments},
        with_unfinished_runs=frozenset(busy),
    )


def test_an_empty_server_gets_pools_then_queues_from_the_highest_down_then_deployments():
    changes = plan([wanted()], holding(queues={}))

    queues = [*(f"priority-{priority}" for priority in (5, 4, 3, 2, 1, 0)), "background"]
    pool = [("create pool", ""), *(("create queue", f"/{queue}") for queue in queues)]
    assert [(change.action, change.name) for change in changes] == [
        *((action, f"cpu{name}") for action, name in pool),
        *((action, f"gpu{name}") for action, name in pool),
        ("create", "A"),
    ]


def test_what_is_as_it_should_be_is_left_alone():
    assert plan([wanted("A"), wanted("B", priority=3)], holding(wanted("A"), wanted("B", priority=3))) == ()


def test_a_pool_that_was_made_half_way_gets_its_missing_queues():
    half = {name: number for name, number in QUEUES.items() if name not in {"priority-4", "background"}}

    changes = plan([], holding(queues={"cpu": half, "gpu": QUEUES}))

    assert [str(change) for change in changes] == [
        "create queue cpu/priority-4: Prefect priority 2",
        "create queue cpu/background: Prefect priority 7",
    ]


def test_a_pool_that_is_there_keeps_the_priorities_that_the_site_gave_its_queues():
    assert plan([], holding(queues={"cpu": dict.fromkeys(QUEUES, 9), "gpu": QUEUES})) == ()


def test_a_kind_of_gpu_gets_a_pool_of_its_own_once():
    models = [{"docker_kwargs": {"image": "busybox"}, "gpu": "a100"}]

    changes = plan([wanted("A", models=models), wanted("B", models=models)], holding())

    assert [change.name for change in changes if change.action == "create pool"] == ["gpu-a100"]
    assert [change.detail for change in changes if change.action == "create"] == [
        "pool gpu-a100, queue priority-0",
        "pool gpu-a100, queue priority-0",
    ]


@pytest.mark.parametrize(
    ("change", "fields"),
    [
        ({"version": "2"}, "version, tags, parameters"),
        ({"priority": 5}, "tags, work_queue, parameters"),
        ({"triggers": []}, "description, parameters"),
        ({"concurrency_limit": 2}, "parameters, concurrency_limit, collision_strategy"),
        ({"models": [{"docker_kwargs": {"image": "busybox"}, "gpu": True}]}, "work_pool, parameters"),
        ({"models": [{"docker_kwargs": {"image": "busybox"}, "timeout": 5}]}, "parameters"),
    ],
)
def test_an_update_names_the_fields_that_differ(change, fields):
    change = {"version": "1", **change}
    (update,) = plan([wanted(**change)], holding(wanted(version="1")))

    assert str(update) == f"update A: {fields}"
    assert update.deployment == wanted(**change)


def test_what_processes_again_is_not_rewritten_by_another_installation():
    present = holding(reprocessing(), queues={**POOLS, "gateway": {}})

    assert plan([reprocessing()], present, instance_id="another") == ()


def test_a_deployment_that_a_person_paused_stays_paused():
    assert plan([wanted()], holding(replace(wanted(), paused=True))) == ()

    (update,) = plan([wanted()], holding(replace(wanted(), paused=True, version="another")))

    assert str(update) == "update A: version"
    assert update.deployment is not None
    assert update.deployment.paused
    assert not update.comes_back


def test_a_definition_that_comes_back_unpauses_its_deployment():
    (update,) = plan([wanted()], holding(retired(wanted())))

    assert str(update) == "update A: description, tags, paused"
    assert update.deployment is not None
    assert not update.deployment.paused
    assert update.comes_back


OURS = "this"


def made_by(instance_id: str | None, **fields: object) -> Deployment:
    definition = flow("A", {"Modality": "CT"})
    return replace(desired_deployment(definition, parameter_schema=SCHEMA, instance_id=instance_id), **fields)


def test_a_deployment_without_definition_is_paused_and_deleted_a_step_later():
    (first,) = plan([], holding(made_by(OURS)), instance_id=OURS)
    assert first.deployment is not None
    (second,) = plan([], holding(first.deployment), instance_id=OURS)

    assert str(first) == "pause A: its definition is gone; a later deploy deletes it, unless runs turn up"
    assert str(second) == "delete A: its definition is gone; the history of its runs stays"


def test_a_deployment_without_definition_stays_while_it_has_runs_that_are_not_over():
    (change,) = plan([], holding(made_by(OURS), busy=("A",)), instance_id=OURS)

    assert str(change) == "pause A: its definition is gone; it has runs that are not over"
    assert plan([], holding(retired(made_by(OURS)), busy=("A",)), instance_id=OURS) == ()


def test_a_deployment_without_definition_says_so_and_says_it_once():
    gone = retired(made_by(OURS))

    assert gone.paused
    assert gone.tags[-1] == "definition-gone"
    assert gone.description.startswith("**The definition of this flow is gone.**")
    assert gone.description.endswith(made_by(OURS).description)
    assert retired(gone) == gone


def test_one_that_somebody_unpaused_or_paused_without_a_word_is_paused_properly():
    for present in (replace(retired(made_by(OURS)), paused=False), made_by(OURS, paused=True)):
        (change,) = plan([], holding(present), instance_id=OURS)
        assert change.action == "pause"
        assert change.deployment == retired(present)


def test_a_deployment_without_definition_stays_while_failed_runs_can_be_retried():
    present = replace(holding(made_by(OURS)), with_failed_runs=frozenset({"A"}))
    paused = replace(holding(retired(made_by(OURS))), with_failed_runs=frozenset({"A"}))

    (change,) = plan([], present, instance_id=OURS)

    assert str(change).startswith("pause A: its definition is gone; it has failed runs")
    assert plan([], paused, instance_id=OURS) == ()


@pytest.mark.parametrize("maker", ["other", None])
@pytest.mark.parametrize("paused", [False, True])
def test_what_another_installation_made_is_not_removed(maker: str | None, paused: bool):
    assert plan([], holding(made_by(maker, paused=paused)), instance_id=OURS) == ()


def test_a_deployment_of_no_known_maker_becomes_ours_with_its_definition():
    (update,) = plan([made_by(OURS)], holding(made_by(None)), instance_id=OURS)

    assert str(update) == "update A: tags"
    assert update.deployment is not None
    assert "instance:this" in update.deployment.tags


def test_a_deployment_is_what_its_definition_says():
    deployment = wanted("Thorax", version="1.02", priority=4)

    assert (deployment.work_pool, deployment.work_queue) == ("cpu", "priority-4")
    assert deployment.tags == ("dicomflow", "priority:4", "version:1.02")
    assert deployment.version == "1.02"
    assert (deployment.concurrency_limit, deployment.collision_strategy) == (None, None)
    definition = FlowDefinition.model_validate(deployment.parameters["definition"])
    assert (definition.name, definition.priority) == ("Thorax", 4)


def test_a_definition_without_a_version_is_told_apart_by_its_digest():
    one, same, other = wanted("A"), wanted("A"), wanted("A", priority=3)

    assert one.version == same.version != other.version
    assert FlowDefinition.model_validate(one.parameters["definition"]).digest.startswith(one.version)
    assert not [tag for tag in one.tags if tag.startswith("version:")]


def test_runs_beyond_the_limit_of_a_flow_wait():
    deployment = wanted(concurrency_limit=2)

    assert (deployment.concurrency_limit, deployment.collision_strategy) == (2, "ENQUEUE")


def test_a_limit_that_was_changed_by_hand_to_cancel_runs_is_set_right():
    (update,) = plan(
        [wanted(concurrency_limit=2)],
        holding(replace(wanted(concurrency_limit=2), collision_strategy="CANCEL_NEW", concurrency_limit=1)),
    )

    assert str(update) == "update A: concurrency_limit, collision_strategy"


def test_the_pools_of_a_site_are_those_of_its_deployments_and_two_that_any_site_has():
    models = [{"docker_kwargs": {"image": "busybox"}, "gpu": "a100"}]

    assert pools_for([]) == ("cpu", "gpu")
    assert pools_for([wanted(models=models), wanted()]) == ("cpu", "gpu", "gpu-a100")


def test_the_parameters_give_back_the_very_definition():
    definition = FlowDefinition.model_validate(
        {
            "name": "All",
            "triggers": [{"00080060": "CT", "StudyDescription": ["AutoSeg", "~Phantom"]}],
            "models": [
                {
                    "docker_kwargs": {"image": "a:1", "command": "sh -c 'echo 1'", "environment": {"N": 0}},
                    "gpu": "a100",
                    "timeout": 2.5,
                    "static_mounts": ["M:/model"],
                }
            ],
            "destinations": [{"host": "pacs", "port": 104, "ae_title": "PACS"}],
            "return_to_sender_on_port": [10002],
        }
    )

    parameters = desired_deployment(definition, parameter_schema=SCHEMA).parameters

    again = FlowDefinition.model_validate(parameters["definition"])
    assert again == definition
    assert again.digest == definition.digest


def test_the_description_tells_when_what_and_where_to():
    text = wanted(
        triggers=[{"Modality": "CT", "SeriesDescription": ["Head", "~Phantom"]}],
        destinations=[{"host": "pacs", "port": 104, "ae_title": "PACS"}],
        return_to_sender_on_port=[10002],
    ).description

    assert "some instance has `Modality` matches `CT` and `SeriesDescription` matches `Head`, `~Phantom`" in text
    assert "1. `busybox`" in text
    assert "- PACS at pacs:104\n- back to the sender, on port 10002" in text


def test_the_description_of_a_graph_tells_who_reads_what():
    models = [
        {"docker_kwargs": {"image": "fold"}, "input_mounts": {"src": "/in"}, "output_mounts": {"seg": "/out"}},
        {
            "docker_kwargs": {"image": "merge"},
            "input_mounts": {"seg": "/s", "src": "/c"},
            "output_mounts": {"dst": "/out"},
        },
    ]
    text = wanted(models=models).description
    assert "1. `fold`, from src to seg\n2. `merge`, from seg, src to dst\n" in text


def test_the_description_of_a_flow_that_never_fires_and_sends_nothing_says_so():
    text = wanted(triggers=[]).description

    assert "**Runs only when asked for.**" in text
    assert text.endswith("**Sends its results**\n- nowhere")


def test_deployments_of_the_same_definition_do_not_differ():
    definition = flow("A", {"Modality": "CT"})
    one, other = (desired_deployment(definition, parameter_schema=dict(SCHEMA)) for _ in range(2))

    assert differences(one, other) == []
    assert differences(one, replace(other, description="by hand")) == ["description"]


def test_an_installation_has_a_pool_without_our_queues_in_which_it_is_asked_to_process_again():
    changes = plan([reprocessing()], holding())

    assert [str(change) for change in changes] == [
        "create pool gateway",
        "create reprocess/study: pool gateway, queue default",
    ]
    assert changes[1].deployment == reprocessing()
    assert plan([reprocessing()], holding(reprocessing(), queues={**POOLS, "gateway": {"default": 1}})) == ()


def test_a_flow_called_study_is_another_deployment_than_the_one_that_processes_again():
    present = holding(reprocessing(), queues={**POOLS, "gateway": {}})

    (change,) = plan([wanted("study"), reprocessing()], present, instance_id=OURS)

    assert str(change) == "create study: pool cpu, queue priority-0"
    assert change.deployment is not None
    assert change.deployment.flow_name == "process-study"


def test_what_processes_again_is_no_installations_own_and_runs_the_gateways_flow():
    deployment = reprocessing()

    assert deployment.tags == ("dicomflow",)
    assert (deployment.flow_name, deployment.name, deployment.key) == ("reprocess", "study", "reprocess/study")
    assert deployment.entrypoint == "dicom_gateway.reprocess.reprocess"
