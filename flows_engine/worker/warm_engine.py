"""Prefect's engine, with all that a run needs imported: what a zygote holds, and what each run forked from it does."""

from __future__ import annotations

import importlib
import runpy
import sys
import warnings
from pathlib import Path
from typing import Final

# What `python -m prefect.engine` has imported when a run of ours is over, as far as one of these does not import the
# other. A test compares.
IMPORTED: Final = (
    "anyio._backends._asyncio",
    "anyio.streams.tls",
    "prefect._internal.observers",
    "prefect.flow_engine",
    "prefect.main",
    "prefect.task_engine",
    "rich._emoji_codes",
    "flows_engine.flows.process_study",
)

for _name in IMPORTED:
    importlib.import_module(_name)


def main() -> None:
    """Do what ``python -m prefect.engine`` does."""
    sys.path.insert(0, str(Path.cwd()))
    # It is imported already, as another module than the one that runs.
    warnings.filterwarnings("ignore", message=".*found in sys.modules", module="runpy")
    runpy.run_module("prefect.engine", run_name="__main__", alter_sys=True)
