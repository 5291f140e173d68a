"""What a request to Prefect's API has to carry, where the site protects it. Pure."""

from __future__ import annotations

import base64
from collections.abc import Mapping


def api_headers(environ: Mapping[str, str]) -> dict[str, str]:
    """Return the headers for the credentials that ``environ`` holds, as Prefect's own client sends them."""
    if auth_string := environ.get("PREFECT_API_AUTH_STRING"):
        return {"Authorization": f"Basic {base64.b64encode(auth_string.encode()).decode()}"}
    if api_key := environ.get("PREFECT_API_KEY"):
        return {"Authorization": f"Bearer {api_key}"}
    return {}
