"""An artifact of a run, which nothing depends on: the run goes on where it cannot be made."""

from __future__ import annotations

import logging

from prefect.artifacts import create_markdown_artifact


def show(markdown: str, *, description: str, logger: logging.Logger | logging.LoggerAdapter[logging.Logger]) -> None:
    """Have Prefect show a text with the run, and with the task if this is one."""
    try:
        create_markdown_artifact(markdown, description=description)
    # Prefect's server may refuse it, or be away. What was done is done, and is not to be done again for this.
    except Exception as error:  # noqa: BLE001
        logger.warning("an artifact of the run cannot be made (%s)", type(error).__name__)
