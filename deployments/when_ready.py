"""Wait until what a service needs answers, then become that service.

    python -m deployments.when_ready http://127.0.0.1:4200/api/health -- prefect worker start …
    python -m deployments.when_ready unix:/data/postgres/.s.PGSQL.5432 -- prefect server start …

A supervisor starts everything at once; without this, services would die and be started again until their turn has come.
"""

from __future__ import annotations

import os
import socket
import sys
import time
from collections.abc import Mapping

import httpx

from deployments.api_credentials import api_headers

_PAUSE_SECONDS = 0.1


def answers(address: str, *, environ: Mapping[str, str]) -> bool:
    """Say whether something listens at ``unix:PATH``, or answers 2xx at an ``http://`` address.

    ``environ`` holds the credentials for Prefect's API, where it asks for some.
    """
    if address.startswith("unix:"):
        with socket.socket(socket.AF_UNIX) as connection:
            return connection.connect_ex(address.removeprefix("unix:")) == 0
    # Where nothing is encrypted no certificate is needed; to read those of all authorities takes 40 ms of a processor,
    # and four services ask ten times a second while Prefect's server starts.
    encrypted = address.startswith("https:")
    try:
        return httpx.get(address, headers=api_headers(environ), timeout=5, verify=encrypted).is_success
    except httpx.TransportError:
        return False


def main(arguments: list[str]) -> None:
    """Wait for ``arguments[0]``, then execute what stands behind ``--``. Does not return."""
    address, separator, *command = arguments if len(arguments) > 1 else ("", "")
    if separator != "--" or not command:
        raise SystemExit("usage: python -m deployments.when_ready ADDRESS -- COMMAND …")
    while not answers(address, environ=os.environ):
        time.sleep(_PAUSE_SECONDS)
    os.execvp(command[0], command)  # noqa: S606


if __name__ == "__main__":
    main(sys.argv[1:])
