from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace
from uuid import UUID, uuid4

import httpx
import pytest
from prefect.exceptions import PrefectHTTPStatusError

from dicom_gateway.errors import TriggerRefusedError, TriggerUnavailableError
from dicom_gateway.prefect_trigger import PrefectTrigger
from tests.services import wait_until


class Answering:
    """A Prefect client whose server has the deployment, and answers a wish for a run with one status."""

    def __init__(self, status):
        self.status = status

    def read_deployments(self, **_filters):
        return [SimpleNamespace(id=uuid4())]

    def request(self, *_arguments, **_named):
        raise _failure(self.status)


def _failure(status):
    response = httpx.Response(status, request=httpx.Request("POST", "http://prefect/api"), json={})
    return PrefectHTTPStatusError("it failed", request=response.request, response=response)


@pytest.mark.parametrize("status", [413, 422])
def test_an_answer_that_judges_the_run_refuses_it(make_request, status):
    request, key = make_request("0193e4c2-7a54-7cc3-98c4-dc0c0c070001")
    with pytest.raises(TriggerRefusedError, match=str(status)):
        PrefectTrigger(Answering(status)).trigger(request, idempotency_key=key)


@pytest.mark.parametrize("status", [302, 307, 400, 401, 403, 404, 405, 409, 429, 500, 502, 503])
def test_any_other_answer_is_asked_again_later(make_request, status):
    request, key = make_request("0193e4c2-7a54-7cc3-98c4-dc0c0c070001")
    with pytest.raises(TriggerUnavailableError):
        PrefectTrigger(Answering(status)).trigger(request, idempotency_key=key)


class Gathering:
    """A client that keeps the first wish for a run waiting, so that the next ones are made together.

    ``together`` is what it answers to those: a response, or an error.
    """

    def __init__(self, together):
        self._together = together
        self._first = threading.Event()
        self.asked_together = []
        self.asked_singly = []

    def read_deployments(self, **_filters):
        return [SimpleNamespace(id=UUID(int=1))]

    def request(self, _method, route, *, path_params, json):
        assert path_params == {"id": UUID(int=1)}
        if not route.endswith("/bulk"):
            self.asked_singly.append(json["idempotency_key"])
            if len(self.asked_singly) == 1:
                assert self._first.wait(timeout=10)
            return SimpleNamespace(json=lambda: {"id": f"run of {json['idempotency_key']}"})
        self.asked_together.append([run["idempotency_key"] for run in json])
        if isinstance(self._together, Exception):
            raise self._together
        return SimpleNamespace(json=lambda: {"results": self._together(json)})

    def trigger_several(self, request, keys):
        """Return what came of each key: an id, or an error."""
        trigger = PrefectTrigger(self)
        with ThreadPoolExecutor(len(keys)) as pool:
            calls = []
            for number, key in enumerate(keys):
                calls.append(pool.submit(trigger.trigger, request, idempotency_key=key))
                wait_until(
                    lambda number=number: (
                        self.asked_singly and sum(map(len, trigger._gathered._waiting.values())) >= number
                    ),
                    seconds=10,
                    what=f"{number} wait",
                )
            self._first.set()
            return {key: call.exception() or call.result() for key, call in zip(keys, calls, strict=True)}


def created(runs):
    return [{"status": "CREATED", "flow_run_id": f"bulk run of {run['idempotency_key']}"} for run in runs]


def test_runs_asked_for_while_one_is_made_are_made_in_one_request(make_request):
    request, _ = make_request("0193e4c2-7a54-7cc3-98c4-dc0c0c070001")
    client = Gathering(created)
    assert client.trigger_several(request, ["a", "b", "c"]) == {
        "a": "run of a",
        "b": "bulk run of b",
        "c": "bulk run of c",
    }
    assert client.asked_together == [["b", "c"]]


@pytest.mark.parametrize(
    "together",
    [
        pytest.param(lambda runs: [*created(runs)[:-1], {"status": "FAILED", "error": "no"}], id="one of them fails"),
        pytest.param(lambda runs: created(runs)[:-1], id="one of them is not spoken of"),
        pytest.param(_failure(404), id="no such deployment, or no such route"),
        pytest.param(_failure(422), id="refused"),
        pytest.param(_failure(500), id="broken"),
        pytest.param(httpx.WriteError("reset"), id="a proxy that does not take so much"),
    ],
)
def test_each_is_asked_for_by_itself_where_all_together_did_not_work_out(make_request, together):
    request, _ = make_request("0193e4c2-7a54-7cc3-98c4-dc0c0c070001")
    client = Gathering(together)
    assert client.trigger_several(request, ["a", "b", "c"]) == {key: f"run of {key}" for key in "abc"}
    assert sorted(client.asked_singly) == ["a", "b", "c"]


@pytest.mark.parametrize("together", [_failure(503), httpx.ReadTimeout("too slow")])
def test_a_server_that_is_away_is_not_asked_for_each_by_itself(make_request, together):
    request, _ = make_request("0193e4c2-7a54-7cc3-98c4-dc0c0c070001")
    client = Gathering(together)
    outcomes = client.trigger_several(request, ["a", "b", "c"])
    assert outcomes["a"] == "run of a"
    assert isinstance(outcomes["b"], TriggerUnavailableError)
    assert isinstance(outcomes["c"], TriggerUnavailableError)
    assert client.asked_singly == ["a"]
