"""A block of a real Prefect server says where the Docker engine is."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest
from prefect.context import refresh_global_settings_context
from prefect_docker import DockerHost

import flows_engine.flows.process_study as recipe
from flows_engine.definition.schema import FlowDefinition
from flows_engine.docker_connection import connected
from flows_engine.engine_block import address_of_block
from flows_engine.errors import EngineMisconfiguredError, EngineUnavailableError
from flows_engine.handoff.engine_address import EngineAddress
from tests.integration.remote_site import STUDY, RemoteSite
from tests.remote_engine import RemoteEngine, remote_engine
from tests.services import unused_port

pytestmark = pytest.mark.prefect
ELSEWHERE = EngineAddress(url="tcp://192.0.2.255:2376", certificates=Path("/certificates"))


@pytest.fixture(scope="module")
def remote() -> Iterator[RemoteEngine]:
    with remote_engine("hello-world") as engine:
        yield engine


@pytest.fixture
def kept(empty_prefect: str, tmp_path: Path) -> Path:
    return tmp_path / "locks" / "block.json"


@pytest.fixture
def nobody_answers(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    with monkeypatch.context() as environment:
        environment.setenv("PREFECT_API_URL", f"http://127.0.0.1:{unused_port()}/api")
        refresh_global_settings_context()
        yield
    refresh_global_settings_context()


def save(**values: object) -> str:
    """Make the block of this test anew."""
    DockerHost(**values).save("my-engine", overwrite=True, _sync=True)
    return "my-engine"


@pytest.mark.docker
@pytest.mark.dockerd
def test_a_flow_runs_on_the_engine_of_a_block(
    empty_prefect: str, tmp_path: Path, remote: RemoteEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    site = RemoteSite(tmp_path, ELSEWHERE)
    settings = {
        "CONF_DIR": str(tmp_path),
        "DATA_DIR": str(site.settings.data_dir),
        "DOCKER_HOST": "tcp://192.0.2.255:2375",
        "DOCKER_HOST_BLOCK": save(base_url=remote.address.url, timeout=30),
        "PREFECT_LOCAL_STORAGE_PATH": str(tmp_path / "results"),
    }
    for name, value in settings.items():
        monkeypatch.setenv(name, value)
    refresh_global_settings_context()
    smallest = {"triggers": [{"Modality": "CT"}], "models": [{"docker_kwargs": {"image": "hello-world"}}]}
    state = recipe.process_study(
        study_id=STUDY,
        study_uri="file:///studies/1",
        sender={"ae_title": "CT", "host": "127.0.0.1", "port": 104},
        received_at=datetime.now(UTC),
        definition=FlowDefinition.model_validate({"name": "smallest", "destinations": [], **smallest}),
        return_state=True,
    )
    assert state.is_completed(), state.message
    assert remote.left() == (0, 0)


def test_what_a_block_leaves_open_is_as_the_settings_have_it(kept: Path) -> None:
    name = save(max_pool_size=3, client_kwargs={"user_agent": "x"})
    address = address_of_block(name, site=ELSEWHERE, kept=kept)
    assert (address.url, address.certificates) == (ELSEWHERE.url, ELSEWHERE.certificates)
    assert address.options == {"version": "auto", "max_pool_size": 3, "user_agent": "x"}


def test_a_block_that_is_changed_is_another_one_at_once(kept: Path) -> None:
    for url in ("tcp://a:1", "tcp://b:2"):
        assert address_of_block(save(base_url=url), site=ELSEWHERE, kept=kept).url == url


def test_a_block_that_does_not_exist_is_named(kept: Path) -> None:
    with pytest.raises(EngineMisconfiguredError, match="block docker-host/not-there does not exist; make it in"):
        address_of_block("not-there", site=ELSEWHERE, kept=kept)


def test_an_address_in_a_block_is_looked_at_as_the_setting_is(kept: Path) -> None:
    with pytest.raises(EngineMisconfiguredError, match=r"block docker-host/my-engine: base_url: .* leads over ssh"):
        address_of_block(save(base_url="ssh://user@host"), site=ELSEWHERE, kept=kept)


def test_certificates_are_not_named_in_a_block(kept: Path) -> None:
    with pytest.raises(EngineMisconfiguredError, match="client_kwargs: tls cannot be there"):
        address_of_block(save(client_kwargs={"tls": True}), site=ELSEWHERE, kept=kept)


@pytest.mark.docker
@pytest.mark.dockerd
def test_an_option_that_no_client_has_is_named(kept: Path, remote: RemoteEngine) -> None:
    name = save(base_url=remote.address.url, client_kwargs={"bogus": 1})
    address = address_of_block(name, site=EngineAddress(), kept=kept)
    with pytest.raises(EngineMisconfiguredError, match="'bogus'"), connected(address):
        pass


@pytest.mark.usefixtures("empty_prefect")
def test_without_prefect_the_engine_is_where_the_block_had_it(
    kept: Path, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = save(base_url="tcp://a:1")
    address = address_of_block(name, site=ELSEWHERE, kept=kept)
    assert kept.stat().st_mode & 0o077 == 0
    request.getfixturevalue("nobody_answers")
    assert address_of_block(name, site=ELSEWHERE, kept=kept) == address
    with pytest.raises(EngineUnavailableError, match="docker-host/other cannot be loaded"):
        address_of_block("other", site=ELSEWHERE, kept=kept)
    kept.write_text("{")
    with pytest.raises(EngineUnavailableError):
        address_of_block(name, site=ELSEWHERE, kept=kept)
    monkeypatch.delenv("PREFECT_API_URL")
    refresh_global_settings_context()
    with pytest.raises(EngineUnavailableError, match="PREFECT_API_URL is not set"):
        address_of_block(name, site=ELSEWHERE, kept=kept)
