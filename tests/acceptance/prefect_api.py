"""What a person sees in Prefect's UI, read over the REST API that the UI itself uses."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, TypeVar

import httpx

FINAL = frozenset({"COMPLETED", "FAILED", "CRASHED", "CANCELLED"})
PATIENCE_SECONDS = 150.0
_PAUSE_SECONDS = 0.3
_PAGE = 200

Found = TypeVar("Found")


def eventually(look: Callable[[], Found], accept: Callable[[Found], object], *, what: str) -> Found:
    """Look until what is found is accepted, and return it. Raises ``TimeoutError``, which shows the last look."""
    deadline = time.monotonic() + PATIENCE_SECONDS
    while True:
        found = look()
        if accept(found):
            return found
        if time.monotonic() > deadline:
            raise TimeoutError(f"{what}: not within {PATIENCE_SECONDS:g} s; at last {found!r:.2000}")
        time.sleep(_PAUSE_SECONDS)


class PrefectApi:
    """A Prefect server, as its API tells of it."""

    def __init__(self, url: str) -> None:
        self._client = httpx.Client(base_url=url, timeout=30)

    def runs(self, *deployments: str) -> list[dict[str, Any]]:
        """Return the flow runs of ``deployments``, or of all, in the order in which they were created."""
        wanted = {"deployments": {"name": {"any_": list(deployments)}}} if deployments else {}
        return sorted(self._filter("flow_runs", wanted), key=lambda run: str(run["created"]))

    def run(self, run_id: str) -> dict[str, Any]:
        return self._get(f"/flow_runs/{run_id}")

    def states(self, run_id: str) -> list[dict[str, Any]]:
        """Return every state that a run was in, oldest first."""
        found: list[dict[str, Any]] = self._get("/flow_run_states/", flow_run_id=run_id)
        return sorted(found, key=lambda state: str(state["timestamp"]))

    def state_names(self, run_id: str) -> list[str]:
        return [state["name"] for state in self.states(run_id)]

    def task_runs(self, run_id: str) -> list[dict[str, Any]]:
        return self._filter("task_runs", {"flow_runs": {"id": {"any_": [run_id]}}})

    def log(self, run_id: str) -> list[str]:
        """Return the lines of a run's log, in order."""
        records = self._filter("logs", {"logs": {"flow_run_id": {"any_": [run_id]}}, "sort": "TIMESTAMP_ASC"})
        return [record["message"] for record in records]

    def log_until(self, run_id: str, line: str) -> list[str]:
        """Return a run's log as soon as it has ``line``; Prefect sends its log in batches, a moment late."""
        return eventually(lambda: self.log(run_id), lambda lines: line in lines, what=f"{line!r} is logged")

    def deployment_names(self) -> set[str]:
        return {deployment["name"] for deployment in self._filter("deployments", {})}

    def deployment(self, name: str, *, flow: str = "process-study") -> dict[str, Any]:
        return self._get(f"/deployments/name/{flow}/{name}")

    def everything(self) -> str:
        """Return all that whoever reaches the UI can read of runs, tasks, states, logs, artifacts and deployments."""
        kinds = ("flow_runs", "task_runs", "logs", "artifacts", "deployments", "work_pools", "variables")
        texts = [self._text(kind) for kind in kinds]
        texts += [str(self.states(run["id"])) for run in self.runs()]
        return "\n".join(texts)

    def retry(self, run_id: str) -> None:
        """Do what the UI's button Retry does."""
        self.set_state(run_id, {"type": "SCHEDULED", "name": "AwaitingRetry", "message": "Retry from the UI"})

    def cancel(self, run_id: str) -> None:
        """Do what the UI's button Cancel does; Prefect makes Cancelled of it at once where nothing runs yet."""
        answer = self._set_state(run_id, type="CANCELLING", name="Cancelling", message="Cancelled from the UI")
        assert answer["status"] == "ACCEPT" or answer["state"]["type"] == "CANCELLED", answer

    def set_state(self, run_id: str, state: dict[str, str]) -> None:
        answer = self._set_state(run_id, **state)
        assert answer["status"] == "ACCEPT", answer

    def _set_state(self, run_id: str, **state: str) -> dict[str, Any]:
        response = self._client.post(f"/flow_runs/{run_id}/set_state", json={"state": state})
        found: dict[str, Any] = response.raise_for_status().json()
        return found

    def change_work_pool(self, name: str, **values: Any) -> None:
        """Do what the UI's form of a work pool does."""
        self._client.patch(f"/work_pools/{name}", json=values).raise_for_status()

    def await_final(self, run_id: str) -> dict[str, Any]:
        """Return the state in which a run ended, once it has."""
        run = eventually(
            lambda: self.run(run_id), lambda run: run["state"] and run["state"]["type"] in FINAL, what="the run is over"
        )
        state: dict[str, Any] = run["state"]
        return state

    def await_state(self, run_id: str, *names: str) -> dict[str, Any]:
        return eventually(lambda: self.run(run_id), lambda run: run["state"]["name"] in names, what=f"run is {names}")

    def await_runs(self, deployment: str, count: int = 1) -> list[dict[str, Any]]:
        """Return the runs of a deployment once there are ``count`` of them."""
        return eventually(
            lambda: self.runs(deployment), lambda runs: len(runs) >= count, what=f"{count} runs of {deployment}"
        )

    def await_deployments(self, *names: str) -> None:
        eventually(self.deployment_names, lambda known: known >= set(names), what=f"deployments {names}")

    def await_parameter(self, deployment: str, text: str) -> None:
        """Return once the definition that a deployment carries has ``text`` in it."""
        eventually(lambda: str(self.deployment(deployment)["parameters"]), lambda told: text in told, what=text)

    def _get(self, path: str, **query: str) -> Any:
        response = self._client.get(path, params=query)
        response.raise_for_status()
        return response.json()

    def _filter(self, kind: str, body: dict[str, Any]) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = []
        while True:
            response = self._client.post(f"/{kind}/filter", json={**body, "limit": _PAGE, "offset": len(found)})
            response.raise_for_status()
            page = response.json()
            found += page
            if len(page) < _PAGE:
                return found

    def _text(self, kind: str) -> str:
        return str(self._filter(kind, {}))
