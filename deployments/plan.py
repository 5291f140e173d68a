"""What Prefect should hold for a set of definitions, and what has to change for that. Pure; prints well."""

from __future__ import annotations

from collections.abc import Container, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, Final, Literal

from flows_engine.definition import naming
from flows_engine.definition.schema import FlowDefinition, Model

ENTRYPOINT = "flows_engine.flows.process_study.process_study"
REPROCESS_ENTRYPOINT = "dicom_gateway.reprocess.reprocess"
# What Prefect does with a run beyond the limit: the run waits. The other choice would cancel it.
WAITS_FOR_A_SLOT: Final = "ENQUEUE"
_DIGEST_CHARACTERS: Final = 8
_GONE: Final = (
    "**The definition of this flow is gone.** Runs that wait are still run, and can be cancelled; those that failed "
    "can be retried. When no run needs it any more, this deployment is deleted.\n\n"
)


@dataclass(frozen=True, kw_only=True)
class Deployment:
    """One deployment, as far as we set it: of the flow ``process-study``, unless it says otherwise."""

    name: str
    version: str
    description: str
    tags: tuple[str, ...]
    work_pool: str
    work_queue: str
    parameters: Mapping[str, Any]
    parameter_schema: Mapping[str, Any]
    entrypoint: str = ENTRYPOINT
    paused: bool = False
    concurrency_limit: int | None = None
    collision_strategy: str | None = None
    flow_name: str = naming.FLOW_NAME

    @property
    def key(self) -> str:
        """What tells it from all others: its name, or its full name where it is of another flow."""
        return self.name if self.flow_name == naming.FLOW_NAME else f"{self.flow_name}/{self.name}"


@dataclass(frozen=True, kw_only=True)
class PrefectContents:
    """What a Prefect server holds for us: pools with their queues, the deployments that carry our tag (by their keys),
    and which of them have runs that their deletion would harm: those that are not over, and those that may be retried.
    """

    queue_priorities: Mapping[str, Mapping[str, int]]
    deployments: Mapping[str, Deployment]
    with_unfinished_runs: frozenset[str]
    with_failed_runs: frozenset[str] = frozenset()


Action = Literal["create pool", "create queue", "create", "update", "pause", "delete"]


@dataclass(frozen=True, kw_only=True)
class Change:
    """One thing to do. ``name`` is a pool, ``pool/queue`` or the key of a deployment; ``detail`` says what or why, for
    people.

    ``deployment`` is what is to be there afterwards; ``comes_back`` says that its definition was gone until now.
    """

    action: Action
    name: str
    detail: str = ""
    deployment: Deployment | None = None
    comes_back: bool = False

    def __str__(self) -> str:
        """Return one line for people."""
        return f"{self.action} {self.name}" + (f": {self.detail}" if self.detail else "")


def desired_deployment(
    definition: FlowDefinition, *, parameter_schema: Mapping[str, Any], instance_id: str | None = None
) -> Deployment:
    """Return the deployment that a definition stands for, made by the installation ``instance_id``.

    A definition without a version has the beginning of its digest for one: Prefect would put in a version of its own
    choice, and another one for each way of deploying.
    """
    tags = naming.definition_tags(version=definition.version, priority=definition.priority)
    if instance_id is not None:
        tags.append(naming.instance_tag(instance_id))
    return Deployment(
        name=definition.name,
        version=definition.version or definition.digest[:_DIGEST_CHARACTERS],
        description=description(definition),
        tags=tuple(tags),
        work_pool=definition.work_pool,
        work_queue=naming.work_queue(definition.priority),
        parameters={"definition": definition.model_dump(mode="json", exclude_none=True)},
        parameter_schema=parameter_schema,
        concurrency_limit=definition.concurrency_limit,
        collision_strategy=None if definition.concurrency_limit is None else WAITS_FOR_A_SLOT,
    )


def reprocess_deployment(*, parameter_schema: Mapping[str, Any]) -> Deployment:
    """Return the deployment by which an installation is asked to process studies again.

    It is there whatever the definitions say, and no installation's own: those that share a server would rewrite it in
    turn.
    """
    return Deployment(
        name=naming.REPROCESS_DEPLOYMENT_NAME,
        version=_REPROCESS_VERSION,
        description=_REPROCESS_DESCRIPTION,
        tags=(naming.MANAGED_TAG,),
        work_pool=naming.GATEWAY_POOL,
        work_queue=naming.PREFECTS_OWN_QUEUE,
        parameters={},
        parameter_schema=parameter_schema,
        entrypoint=REPROCESS_ENTRYPOINT,
        flow_name=naming.REPROCESS_FLOW_NAME,
    )


# Without one Prefect would put in a version of its own choice, and another one for each way of deploying.
_REPROCESS_VERSION: Final = "1"
_REPROCESS_DESCRIPTION = """\
**Processes received studies again**: one, or all of a span of time; by every flow that matches now, or by one.

The run's message says what came of it, its artifact has a row for each run that was made. In bulk, runs wait behind
everything else, two hundred at a time; cancelling the request withdraws those that have not begun.
"""


def description(definition: FlowDefinition) -> str:
    """Return what a flow does, in Markdown, as the Prefect UI shows it."""
    if definition.triggers:
        triggers = [
            " and ".join(
                f"`{condition.written}` matches {', '.join(f'`{pattern.written}`' for pattern in condition.patterns)}"
                for condition in trigger.conditions
            )
            for trigger in definition.triggers
        ]
        fires = "**Runs on a study in which**\n" + "\n".join(f"- some instance has {trigger}" for trigger in triggers)
    else:
        fires = "**Runs only when asked for.**"
    models = "\n".join(f"{n}. {_model(model)}" for n, model in enumerate(definition.models, start=1))
    nodes = [f"- {node.ae_title} at {node.host}:{node.port}" for node in definition.destinations]
    nodes += [f"- back to the sender, on port {port}" for port in definition.return_to_sender_on_port]
    sends = "\n".join(nodes) if nodes else "- nowhere"
    return f"{fires}\n\n**Models**\n{models}\n\n**Sends its results**\n{sends}"


def _model(model: Model) -> str:
    image = f"`{model.docker_kwargs.image}`"
    if model.input_mounts is None or model.output_mounts is None:
        return image
    return f"{image}, from {', '.join(model.input_mounts)} to {', '.join(model.output_mounts)}"


def plan(
    desired: Iterable[Deployment], existing: PrefectContents, *, instance_id: str | None = None
) -> tuple[Change, ...]:
    """Return what has to change, in the order in which it must be done. Empty where all is as it should be.

    A pool that is there keeps its settings: they are the site's. A deployment of the installation ``instance_id`` whose
    definition is gone is paused; it is deleted by a later plan, once no run needs it any more. Those that others made,
    or nobody knows who, are never removed. One that a person paused stays paused.
    """
    wanted = {deployment.key: deployment for deployment in desired}
    changes = list(pool_changes(pools_for(wanted.values()), existing.queue_priorities))
    for name, deployment in wanted.items():
        present = existing.deployments.get(name)
        if present is None:
            changes.append(
                Change(
                    action="create",
                    name=name,
                    deployment=deployment,
                    detail=f"pool {deployment.work_pool}, queue {deployment.work_queue}",
                )
            )
            continue
        comes_back = naming.GONE_TAG in present.tags
        kept = deployment if comes_back else replace(deployment, paused=present.paused)
        if differing := differences(present, kept):
            changes.append(
                Change(action="update", name=name, detail=", ".join(differing), deployment=kept, comes_back=comes_back)
            )
    return (*changes, *_removals(existing, wanted=wanted.keys(), instance_id=instance_id))


def pools_for(deployments: Iterable[Deployment]) -> tuple[str, ...]:
    """Return the work pools that a site has: those that its deployments name, and those that any site has."""
    return tuple(dict.fromkeys(["cpu", "gpu", *(deployment.work_pool for deployment in deployments)]))


def pool_changes(pools: Iterable[str], queue_priorities: Mapping[str, Mapping[str, int]]) -> Iterator[Change]:
    """Yield what is missing of ``pools`` and their queues on a server that holds ``queue_priorities``."""
    for pool in pools:
        queues = queue_priorities.get(pool)
        if queues is None:
            yield Change(action="create pool", name=pool)
        for queue, number in naming.queues(pool).items():
            if (queues or {}).get(queue) is None:
                yield Change(action="create queue", name=f"{pool}/{queue}", detail=f"Prefect priority {number}")


def _removals(existing: PrefectContents, *, wanted: Container[str], instance_id: str | None) -> Iterator[Change]:
    if instance_id is None:
        return
    own_tag = naming.instance_tag(instance_id)
    for name, present in existing.deployments.items():
        if name in wanted or own_tag not in present.tags:
            continue
        if name in existing.with_unfinished_runs:
            reason = "it has runs that are not over"
        elif name in existing.with_failed_runs:
            reason = "it has failed runs, which can be retried while it is there"
        else:
            reason = "a later deploy deletes it, unless runs turn up"
        if not (present.paused and naming.GONE_TAG in present.tags):
            detail = f"its definition is gone; {reason}"
            yield Change(action="pause", name=name, deployment=retired(present), detail=detail)
        elif name not in existing.with_unfinished_runs | existing.with_failed_runs:
            yield Change(action="delete", name=name, detail="its definition is gone; the history of its runs stays")


def retired(present: Deployment) -> Deployment:
    """Return what a deployment is once its definition is gone: it is paused, and it says why."""
    return replace(
        present,
        paused=True,
        tags=tuple(dict.fromkeys([*present.tags, naming.GONE_TAG])),
        description=_GONE + present.description.removeprefix(_GONE),
    )


def differences(present: Deployment, wanted: Deployment) -> list[str]:
    """Return the names of the fields in which two deployments differ."""
    return [field for field in Deployment.__dataclass_fields__ if getattr(present, field) != getattr(wanted, field)]
