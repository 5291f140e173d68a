"""One running host for all acceptance tests; starting it takes long."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from deployments.up import Host
from flows_engine.handoff.site_settings import load_site_settings
from tests.acceptance.site import Site, site_environment
from tests.factories import leaked_canaries


@pytest.fixture(scope="session")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """Everything of one host, as ``dicomflow up`` runs it. At the end its logs are searched for patients."""
    root = tmp_path_factory.mktemp("site")
    environment = site_environment(root)
    started = Site(environment, root=root)
    with Host(load_site_settings(environment), environ=environment):
        yield started
    assert leaked_canaries(started.service_logs()) == []
