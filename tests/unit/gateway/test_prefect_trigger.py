from __future__ import annotations

from types import SimpleNamespace
from uuid import uuid4

import httpx
import pytest
from prefect.exceptions import PrefectHTTPStatusError

from dicom_gateway.errors import TriggerRefusedError, TriggerUnavailableError
from dicom_gateway.prefect_trigger import PrefectTrigger


class Answering:
    """A Prefect client whose server has the deployment, and answers a wish for a run with one status."""

    def __init__(self, status):
        self.status = status

    def read_deployments(self, **_filters):
        return [SimpleNamespace(id=uuid4())]

    def request(self, *_arguments, **_named):
        response = httpx.Response(self.status, request=httpx.Request("POST", "http://prefect/api"), json={})
        raise PrefectHTTPStatusError("it failed", request=response.request, response=response)


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
