"""Prefect's REST API, as far as deployments need it: requests in, values out.

It knows no more of Prefect than the form of its JSON, so that whoever only deploys need not import Prefect, which
takes longer than all the rest.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import count
from typing import Any, Final, Protocol
from urllib.parse import quote

import httpx

from deployments.plan import Deployment
from deployments.pool_template import JOB_TEMPLATE
from flows_engine.definition import naming

SCHEDULED: Final = ("SCHEDULED",)
UNFINISHED: Final = ("SCHEDULED", "PENDING", "RUNNING", "PAUSED", "CANCELLING")
FAILED: Final = ("FAILED", "CRASHED")
_PAGE: Final = 200
"""The longest list that Prefect's server hands out."""


class Connection(Protocol):
    """What carries a request to Prefect's API: its own client does, and so does a ``PlainConnection``."""

    # Prefect's client names its methods and paths one by one: `Any` is what both can take.
    def request(self, method: Any, path: Any, *, json: Any = None) -> httpx.Response:  # noqa: ANN401
        """Return the answer; raise ``httpx.HTTPStatusError`` where it is none of success."""


@dataclass(frozen=True, kw_only=True)
class Deployed:
    """A deployment on the server."""

    id: str
    deployment: Deployment


@dataclass(frozen=True, kw_only=True)
class TaggedRun:
    """A run, as far as its tags matter."""

    id: str
    tags: tuple[str, ...]


def queue_priorities(server: Connection) -> dict[str, dict[str, int]]:
    """Return the work pools of the server, and Prefect's priority of each of their queues."""
    return {
        pool: {queue["name"]: queue["priority"] or 0 for queue in _all(server, f"{_pool(pool)}/queues/filter")}
        for pool in (found["name"] for found in _all(server, "/work_pools/filter"))
        if pool in {"cpu", naming.GATEWAY_POOL} or pool.split("-")[0] == "gpu"
    }


def deployments(server: Connection, *, flow_name: str) -> Iterator[Deployed]:
    """Yield the deployments of a flow that carry our tag."""
    ours = {"tags": {"all_": [naming.MANAGED_TAG]}}
    wanted = {"flows": _named(flow_name), "deployments": ours, "sort": "NAME_ASC"}
    for found in _all(server, "/deployments/filter", wanted):
        yield Deployed(id=found["id"], deployment=_deployment(found, flow_name))


def deployment_ids(server: Connection, *, flow_name: str, name: str) -> list[str]:
    """Return the ids of the deployments of a flow with this name: one, or none."""
    wanted = {"flows": _named(flow_name), "deployments": _named(name)}
    return [found["id"] for found in _all(server, "/deployments/filter", wanted)]


def has_runs(server: Connection, deployment_id: str, *, states: Iterable[str]) -> bool:
    """Tell whether a deployment has runs in one of ``states``."""
    wanted = {"flow_runs": _of_deployment(deployment_id) | {"state": {"type": {"any_": list(states)}}}, "limit": 1}
    return bool(server.request("POST", "/flow_runs/filter", json=wanted).json())


def waiting_runs(server: Connection, deployment_id: str) -> Iterator[TaggedRun]:
    """Yield the runs of a deployment that wait."""
    return _runs(server, _of_deployment(deployment_id) | {"state": {"type": {"any_": list(SCHEDULED)}}})


def runs_with_tag(server: Connection, deployment_id: str, tag: str) -> Iterator[TaggedRun]:
    """Yield the runs of a deployment that carry a tag."""
    return _runs(server, _of_deployment(deployment_id) | {"tags": {"all_": [tag]}})


def retag_run(server: Connection, run_id: str, tags: Iterable[str]) -> None:
    """Give a run these tags and no others."""
    server.request("PATCH", f"/flow_runs/{run_id}", json={"tags": list(tags)})


def create_pool(server: Connection, pool: str) -> None:
    """Make a work pool, unless it is there."""
    wanted = {"name": pool, "type": naming.WORKER_TYPE, "base_job_template": JOB_TEMPLATE}
    _create_once(server, "/work_pools/", wanted)


def create_queue(server: Connection, pool: str, queue: str, *, priority: int) -> None:
    """Make a work queue, unless it is there."""
    _create_once(server, f"{_pool(pool)}/queues", {"name": queue, "priority": priority})


def create_flow(server: Connection, name: str) -> str:
    """Return the id of the flow with this name, which is made where it is not there."""
    return str(server.request("POST", "/flows/", json={"name": name}).json()["id"])


def write_deployment(server: Connection, deployment: Deployment, *, flow_id: str) -> str:
    """Make a deployment, or make the one that is there what ``deployment`` says; return its id."""
    limits = deployment.collision_strategy
    body = {
        "flow_id": flow_id,
        "name": deployment.name,
        "version": deployment.version,
        "description": deployment.description,
        "tags": list(deployment.tags),
        "work_pool_name": deployment.work_pool,
        "work_queue_name": deployment.work_queue,
        "parameters": dict(deployment.parameters),
        "parameter_openapi_schema": dict(deployment.parameter_schema),
        "enforce_parameter_schema": True,
        "entrypoint": deployment.entrypoint,
        "pull_steps": [],
        "paused": deployment.paused,
        "concurrency_limit": deployment.concurrency_limit,
        "concurrency_options": None if limits is None else {"collision_strategy": limits},
        # What is left out stays as it is: these are said because nobody else is to set them.
        "path": None,
        "job_variables": {},
        "schedules": [],
    }
    return str(server.request("POST", "/deployments/", json=body).json()["id"])


def update_deployment(server: Connection, deployment_id: str, **fields: object) -> None:
    """Change fields of a deployment, and leave the others."""
    server.request("PATCH", f"/deployments/{deployment_id}", json=fields)


def delete_deployment(server: Connection, deployment_id: str) -> None:
    """Delete a deployment, and with it its runs that wait."""
    server.request("DELETE", f"/deployments/{deployment_id}")


def has_automation(server: Connection, name: str) -> bool:
    """Tell whether there is an automation with this name."""
    return bool(server.request("POST", "/automations/filter", json={"automations": _named(name), "limit": 1}).json())


def create_automation(server: Connection, automation: Mapping[str, object]) -> None:
    """Make an automation."""
    server.request("POST", "/automations/", json=automation)


def _all(server: Connection, path: str, wanted: Mapping[str, object] | None = None) -> Iterator[dict[str, Any]]:
    for page in count():
        body = {**(wanted or {}), "limit": _PAGE, "offset": page * _PAGE}
        found = server.request("POST", path, json=body).json()
        yield from found
        if len(found) < _PAGE:
            return


def _runs(server: Connection, wanted: Mapping[str, object]) -> Iterator[TaggedRun]:
    # Runs that start between two pages leave at the end of this order, so that no page skips one that waits.
    for found in _all(server, "/flow_runs/filter", {"flow_runs": wanted, "sort": "EXPECTED_START_TIME_DESC"}):
        yield TaggedRun(id=found["id"], tags=tuple(found["tags"]))


def _create_once(server: Connection, path: str, body: Mapping[str, object]) -> None:
    try:
        server.request("POST", path, json=body)
    except httpx.HTTPStatusError as error:
        if error.response.status_code != httpx.codes.CONFLICT:  # someone else was a moment earlier
            raise


def _named(name: str) -> dict[str, object]:
    return {"name": {"any_": [name]}}


def _of_deployment(deployment_id: str) -> dict[str, object]:
    return {"deployment_id": {"any_": [deployment_id]}}


def _pool(name: str) -> str:
    return f"/work_pools/{quote(name, safe='')}"


def _deployment(found: Mapping[str, Any], flow_name: str) -> Deployment:
    limit, options = found.get("global_concurrency_limit"), found.get("concurrency_options")
    return Deployment(
        name=found["name"],
        version=found["version"] or "",
        description=found["description"] or "",
        tags=tuple(found["tags"]),
        work_pool=found["work_pool_name"] or "",
        work_queue=found["work_queue_name"] or "",
        parameters=found["parameters"],
        parameter_schema=found["parameter_openapi_schema"] or {},
        entrypoint=found["entrypoint"] or "",
        paused=found["paused"],
        concurrency_limit=None if limit is None else limit["limit"],
        collision_strategy=None if options is None else options["collision_strategy"],
        flow_name=flow_name,
    )
