"""Names as Prefect shows them unchanged: it takes the name of a task run as a format string."""

from __future__ import annotations


def literal_name(name: str) -> str:
    """Return what Prefect makes ``name`` of."""
    return name.replace("{", "{{").replace("}", "}}")
