"""Which tests stay in one process, where several processes share a run (``pytest -n``)."""

from __future__ import annotations

import pytest
from xdist.scheduler import LoadScopeScheduling

# They start hosts or gateways of their own.
_WITHOUT_THE_SITE = {
    f"tests/acceptance/test_{name}.py"
    for name in ("demo_command", "engine_killed", "receiving_full", "receiving_killed", "up_command")
}


def share_of(node_id: str) -> str:
    """Return what a test shares a process with: its file; or all that uses the one running host of ``acceptance``."""
    file = node_id.partition("::")[0]
    one_site = file.startswith("tests/acceptance/") and file not in _WITHOUT_THE_SITE
    return "tests/acceptance" if one_site else file


class ByFile(LoadScopeScheduling):
    """Hands out share after share, in the order of their names: the longest come first, and the smallest last."""

    def __init__(self, config: pytest.Config, log: object = None) -> None:
        config.option.loadscopereorder = False
        super().__init__(config, log)  # type: ignore[arg-type]

    def _split_scope(self, nodeid: str) -> str:
        return share_of(nodeid)
