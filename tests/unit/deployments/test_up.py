from __future__ import annotations

import socket

import pytest

from deployments.errors import StartupError
from deployments.host_lock import host_lock
from deployments.up import Host, _check_port, _gpu_settings, _listens
from flows_engine.handoff.site_settings import LoadedSettings, SiteSettings


def host(site: SiteSettings, *, environ: dict[str, str] | None = None, **settings: object) -> Host:
    loaded = LoadedSettings(settings=site.model_copy(update=settings), prefect_settings={}, warnings=())
    return Host(loaded, environ=environ or {})


def test_where_a_server_is_named_and_none_answers_it_is_said_at_once(site: SiteSettings, free_port: int):
    named = {"PREFECT_API_URL": f"http://127.0.0.1:{free_port}/api"}

    with pytest.raises(StartupError, match="no server is started here, because PREFECT_API_URL is set"):
        host(site, environ=named, ae_hostname="127.0.0.1", ae_port=_free_port()).__enter__()


def test_a_data_dir_has_one_host(site: SiteSettings):
    with host_lock(site.data_dir), pytest.raises(StartupError, match="another `dicomflow up` is using"):
        host(site).__enter__()


def test_port_0_is_nothing_to_tell_a_sender(site: SiteSettings):
    with pytest.raises(StartupError, match="AE_PORT: is 0"):
        host(site, ae_port=0).__enter__()


def test_flows_that_no_worker_of_this_host_runs_are_named(site: SiteSettings):
    for name, gpu in (("Plain", "false"), ("Any", "true"), ("Kind", "a100")):
        (site.flow_directory / f"{name}.yaml").write_text(
            f"triggers: []\nmodels: [{{docker_kwargs: {{image: a}}, gpu: {gpu}}}]\n"
        )

    assert host(site, gpus=()).flows_without_worker() == {"gpu": ["Any"], "gpu-a100": ["Kind"]}
    assert host(site, gpus=("0",)).flows_without_worker() == {"gpu-a100": ["Kind"]}
    assert host(site, gpus=("0",), gpu_kind="a100").flows_without_worker() == {}


def test_what_a_host_has_to_set_for_a_pool_is_named():
    assert _gpu_settings("gpu") == "GPUS"
    assert _gpu_settings("gpu-a100") == "GPUS and GPU_KIND=a100"


@pytest.mark.parametrize("address", ["127.0.0.1", "::1", "localhost", ""])
def test_a_port_in_use_is_told_whatever_the_family_of_its_address(site: SiteSettings, address: str):
    family, _, _, _, where = socket.getaddrinfo(address or "0.0.0.0", 0, type=socket.SOCK_STREAM)[0]
    with socket.create_server(where[:2], family=family) as server:
        port = server.getsockname()[1]
        assert _listens(site.model_copy(update={"ae_hostname": address, "ae_port": port}))
        with pytest.raises(StartupError, match=r"AE_PORT: .* cannot be listened on"):
            _check_port(address, port, setting="AE_PORT")

    assert not _listens(site.model_copy(update={"ae_hostname": address, "ae_port": port}))
    _check_port(address, port, setting="AE_PORT")


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port: int = server.getsockname()[1]
        return port
