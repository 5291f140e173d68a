from __future__ import annotations

import httpx
import pytest
from prefect.exceptions import PrefectHTTPStatusError

from deployments.server_errors import ServerUnreachableError, told_in_one_line, unless_it_is_gone

URL = "http://127.0.0.1:4200/api"


def _status(code: int) -> PrefectHTTPStatusError:
    response = httpx.Response(code, request=httpx.Request("GET", URL), text="a page\nof many lines")
    return PrefectHTTPStatusError("many\nlines", request=response.request, response=response)


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (httpx.ConnectError("refused"), f"no Prefect server answers at {URL} \\(ConnectError\\)"),
        (httpx.ReadTimeout("slow"), f"no Prefect server answers at {URL} \\(ReadTimeout\\)"),
        (_status(401), f"what answers at {URL} says HTTP status 401"),
        (_status(404), f"what answers at {URL} says HTTP status 404"),
    ],
)
def test_silence_and_refusal_are_told_in_one_line_with_the_way_out(error: Exception, reason: str):
    with pytest.raises(ServerUnreachableError, match=reason) as caught, told_in_one_line(URL):
        raise error

    assert "\n" not in str(caught.value)
    assert "PREFECT_API_URL" in str(caught.value)


def test_other_errors_are_left_as_they_are():
    with pytest.raises(KeyError), told_in_one_line(URL):
        raise KeyError


def test_what_somebody_else_has_deleted_is_no_error():
    with unless_it_is_gone():
        raise _status(404)


@pytest.mark.parametrize("error", [_status(503), httpx.ConnectError("refused"), KeyError("x")])
def test_what_may_still_be_there_is_an_error(error: Exception):
    with pytest.raises(type(error)), unless_it_is_gone():
        raise error
