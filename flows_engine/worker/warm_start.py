"""Starting ``python -m prefect.engine`` from a zygote, wherever only the time that it takes can tell the difference."""

from __future__ import annotations

import logging
import os
import shutil
import sys
from collections.abc import Mapping, Sequence
from contextvars import ContextVar
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import anyio
from prefect.runner import _starter_engine
from prefect.utilities.processutils import run_process

from flows_engine.worker.zygote_keeper import ForkedProcess, NotForkedError, ZygoteKeeper

if TYPE_CHECKING:
    from anyio.abc import Process

logger = logging.getLogger(__name__)

ENGINE_COMMAND: Final = (sys.executable, "-m", "prefect.engine")

# What Python, its libraries and Prefect read once, when they start or are imported. Prefect's names with two
# underscores tell a run which one it is, and are read when they are needed.
_READ_ONCE: Final = ("PREFECT_", "PYTHON", "LANG", "LC_", "LD_", "GLIBC_", "MALLOC_", "OMP_", "OPENBLAS_", "MKL_")
_OF_ONE_RUN: Final = "PREFECT__"
# Prefect reads them in the folder that a process is started in.
_SETTINGS_FILES: Final = ("prefect.toml", "pyproject.toml", ".env")

_keeper_of_this_run: ContextVar[ZygoteKeeper | None] = ContextVar("keeper_of_this_run", default=None)


def start_runs_warm(keeper: ZygoteKeeper) -> None:
    """Have what Prefect starts from here on, in this context, forked from the zygote of ``keeper``, if it can be."""
    # Prefect's starter asks, in its docstring, to be changed at this place.
    _starter_engine.run_process = _run_process  # type: ignore[assignment, attr-defined]
    _keeper_of_this_run.set(keeper)


def differing(environment: Mapping[str, str], other: Mapping[str, str]) -> list[str]:
    """Return the names of those variables that are read once and not the same in two environments. Pure."""
    names = (name for name in {*environment, *other} if name.startswith(_READ_ONCE))
    return sorted(
        name for name in names if not name.startswith(_OF_ONE_RUN) and environment.get(name) != other.get(name)
    )


def is_engine(command: Sequence[str], *, search_path: str | None) -> bool:
    """Tell whether a command is Prefect's engine, run by this very interpreter."""
    if tuple(command[1:]) != ENGINE_COMMAND[1:]:
        return False
    found = shutil.which(command[0], path=search_path)
    # An interpreter of another virtual environment is often a link to the same file, in another folder.
    ours = Path(sys.executable)
    return found is not None and Path(found).parent == ours.parent and Path(found).samefile(ours)


def reason_to_start_anew(*, environment: Mapping[str, str], folder: Path, zygote: Mapping[str, str]) -> str | None:
    """Return why a run cannot be forked from a zygote of another environment; None where it can."""
    if names := differing(environment, zygote):
        return f"its environment has its own {', '.join(names)}"  # never the values: one may be a password
    if not folder.is_dir():
        return "its folder is not there"
    if any((folder / name).exists() for name in _SETTINGS_FILES):
        return "its folder may have settings of its own"
    return None


async def _run_process(command: list[str], **options: Any) -> Process | ForkedProcess:  # noqa: ANN401 - Prefect's
    """Stand in for Prefect's ``run_process``, which starts a command and returns when it is over."""
    forked = await _forked(command, options["env"], folder=Path(options["cwd"]), output=options["stream_output"])
    if forked is None:
        return await run_process(command, **options)
    options["task_status"].started(options["task_status_handler"](forked))
    try:
        await forked.wait()
    except BaseException:
        # The worker stops, and its runs with it, as those that Prefect starts.
        forked.terminate()
        with anyio.CancelScope(shield=True):
            await forked.wait()
        raise
    return forked


async def _forked(
    command: Sequence[str], environment: Mapping[str, str], *, folder: Path, output: bool
) -> ForkedProcess | None:
    keeper = _keeper_of_this_run.get()
    if keeper is None or not is_engine(command, search_path=environment.get("PATH")):
        return None
    reason = reason_to_start_anew(environment=environment, folder=folder, zygote=keeper.environment)
    if reason is None:
        nowhere = os.open(os.devnull, os.O_WRONLY)
        # Straight into the worker's own: handed on by the worker, the output of a run would break when that ends.
        stdout, stderr = (1, 2) if output else (nowhere, nowhere)
        try:
            return await keeper.fork(environment=environment, folder=folder, stdout=stdout, stderr=stderr)
        except NotForkedError as error:
            reason = str(error)
        finally:
            os.close(nowhere)
    logger.warning("a run is started without the zygote, which takes seconds: %s", reason)
    return None
