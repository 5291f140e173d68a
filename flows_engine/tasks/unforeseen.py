"""Errors that nobody foresaw, told without their text: it may quote what a study holds, or name its files."""

from __future__ import annotations

import logging
import traceback
from collections.abc import Iterator
from contextlib import contextmanager

from flows_engine.errors import EngineError


@contextmanager
def unforeseen_in_one_line(logger: logging.Logger | logging.LoggerAdapter[logging.Logger]) -> Iterator[None]:
    """Turn whatever is no ``EngineError`` into one that gives its type only. ``logger`` gets where it was raised."""
    try:
        yield
    except EngineError:
        raise
    except Exception as error:  # noqa: BLE001 - the outer edge of a task and of a run
        sentence = f"it ended with an unforeseen {kind_of(error)}"
        logger.error("%s\n%s", sentence, "".join(traceback.format_tb(error.__traceback__)))  # noqa: TRY400 - no text
        raise EngineError(sentence) from None


def kind_of(error: BaseException) -> str:
    """Return the type of ``error``, with its number where the operating system gave one."""
    name = type(error).__name__
    return f"{name} (errno {error.errno})" if isinstance(error, OSError) and error.errno is not None else name
