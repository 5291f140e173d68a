"""What a service writes to its log: one line a thing that happened, with the ids by which it is found elsewhere."""

from __future__ import annotations

import logging

_IDS = ("study_id", "flow_run_id")


def log_to_stderr(level: int) -> None:
    """Have this process log to standard error, from ``level`` on; whoever runs it keeps that."""
    handler = logging.StreamHandler()
    handler.setFormatter(LineWithIds("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    logging.basicConfig(level=level, handlers=[handler])
    for name in ("httpx", "watchfiles"):  # a line for every request, and for every file that is touched
        logging.getLogger(name).setLevel(logging.WARNING)


class LineWithIds(logging.Formatter):
    """Puts the opaque ids that a record carries behind its sentence."""

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802 - logging's name
        """Return the line without what may follow it, a traceback."""
        known = [f"{name}={record.__dict__[name]}" for name in _IDS if name in record.__dict__]
        return " ".join((super().formatMessage(record), *known))
