from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.integration.receiving import Receiving


@pytest.fixture
def make_receiving(tmp_path: Path) -> Iterator[Callable[..., Receiving]]:
    """Start receivers, by their settings, which stop when the test ends."""
    made: list[Receiving] = []

    def make(**settings: object) -> Receiving:
        made.append(Receiving(tmp_path, **settings))
        return made[-1]

    yield make
    for receiving in made:
        receiving.receiver.stop(grace_seconds=0)
