"""What a Prefect server's silence or refusal means to a person at a terminal, in one line."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import httpx

from deployments.errors import CommandError


class ServerUnreachableError(CommandError):
    """Prefect's server does not answer, or not as one. The message says where it was looked for, and the way out."""


@contextmanager
def told_in_one_line(api_url: object) -> Iterator[None]:
    """Turn what goes wrong between us and the server at ``api_url`` into a ``ServerUnreachableError``."""
    try:
        yield
    except httpx.TransportError as error:
        raise ServerUnreachableError(
            f"no Prefect server answers at {api_url} ({type(error).__name__}); "
            "start one with `dicomflow up`, or set PREFECT_API_URL"
        ) from None
    except httpx.HTTPStatusError as error:
        raise ServerUnreachableError(
            f"what answers at {api_url} says HTTP status {error.response.status_code}; "
            "see the Prefect server's log, and check PREFECT_API_URL (it ends in /api) and its credentials"
        ) from None


@contextmanager
def unless_it_is_gone() -> Iterator[None]:
    """Go on quietly where the server has no such thing any more: somebody else has just deleted it."""
    try:
        yield
    except httpx.HTTPStatusError as error:
        if error.response.status_code != httpx.codes.NOT_FOUND:
            raise
