from __future__ import annotations

from pathlib import Path

import pytest

from deployments.demo import dcmtk
from deployments.demo.run import Folders, demo_host, demonstrate, write_flow
from flows_engine.definition.loading import load_definition
from flows_engine.definition.schema import Node
from tests.services import ROOT

DESTINATION = Node(host="127.0.0.1", port=10001, ae_title="DESTINATION")


@pytest.mark.parametrize("flow", sorted((ROOT / "flow_definitions").glob("*.yaml")), ids=lambda path: path.stem)
def test_any_flow_can_be_shown_with_another_destination(tmp_path: Path, flow: Path):
    write_flow(flow, tmp_path, destination=DESTINATION)

    shown = load_definition(tmp_path / flow.name).definition
    original = load_definition(flow).definition
    assert shown.destinations == (DESTINATION,)
    assert shown.model_copy(update={"destinations": original.destinations}) == original


def test_the_demonstration_leaves_the_callers_own_installation_alone(tmp_path: Path):
    own = {
        "PATH": "/usr/bin",
        "DATA_DIR": "/srv/hospital",
        "AE_PORT": "104",
        "CONF_DIR": "/etc/hospital",
        "PREFECT_API_URL": "http://prefect.hospital/api",
        "PREFECT_API_DATABASE_CONNECTION_URL": "postgresql+asyncpg://hospital/prefect",
    }
    folders = Folders.below(tmp_path)

    host = demo_host(folders, environ=own)

    assert host.settings.data_dir == folders.data
    assert host.settings.flow_directory == folders.flows
    assert host.settings.ae_port not in {104, 10000}
    assert host.plan.api_url.startswith("http://127.0.0.1:")
    assert not any("hospital" in value for value in host.plan.environment.values())
    assert {service.name for service in host.plan.services} >= {"postgres", "prefect-server"}


def test_two_demonstrations_have_different_ports(tmp_path: Path):
    hosts = []
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        hosts.append(demo_host(Folders.below(tmp_path / name), environ={}))

    assert len({host.plan.api_url for host in hosts}) == 2


def test_without_dcmtk_nothing_is_started(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("PATH", "/nowhere")

    with pytest.raises(dcmtk.ToolMissingError):
        demonstrate(None, flow=Path("missing.yaml"), environ={})  # type: ignore[arg-type]
